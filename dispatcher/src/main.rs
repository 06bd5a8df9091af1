//! `outbox-dispatcher`: a shell around the library of the same name.

fn main() -> outbox_service::Exit {
    outbox_dispatcher::daemon::main()
}

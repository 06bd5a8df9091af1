//! Runs the library `outbox-dispatcher` as a program of the same name.

fn main() -> outbox_service::Exit {
    outbox_dispatcher::daemon::main()
}

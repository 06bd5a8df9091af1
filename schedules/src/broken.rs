//! Runs the schedules with altered copies of the files. In each copy the code breaks one rule; see `build.rs`.

mod batching {
    include!(concat!(env!("OUT_DIR"), "/batching.rs"));
}

mod deferred_clears {
    include!(concat!(env!("OUT_DIR"), "/deferred_clears.rs"));
}

mod document_locks {
    include!(concat!(env!("OUT_DIR"), "/document_locks.rs"));
}

mod seats {
    include!(concat!(env!("OUT_DIR"), "/seats.rs"));
}

#[path = "answering.rs"]
pub mod answering;
#[path = "deferring.rs"]
pub mod deferring;
#[path = "locking.rs"]
pub mod locking;
#[path = "seating.rs"]
pub mod seating;

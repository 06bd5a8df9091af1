//! The schedules of the code as it is.

use crate::dispatch::{deferred_clears, document_locks};

/// With a function in place of one that the shuttle lacks, see `build.rs`.
mod batching {
    include!(concat!(env!("OUT_DIR"), "/batching_as_is.rs"));
}

/// With points at which another task may run, see `build.rs`.
mod seats {
    include!(concat!(env!("OUT_DIR"), "/seats_as_is.rs"));
}

#[path = "answering.rs"]
pub mod answering;
#[path = "deferring.rs"]
pub mod deferring;
#[path = "locking.rs"]
pub mod locking;
#[path = "seating.rs"]
pub mod seating;

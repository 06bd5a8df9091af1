//! Runs the schedules with files of the library in which no rule is broken.

use crate::dispatch::{deferred_clears, document_locks};

/// The library's `batching.rs`. A function of this crate replaces `recv_many`, which shuttle lacks; see `build.rs`.
mod batching {
    include!(concat!(env!("OUT_DIR"), "/batching_as_is.rs"));
}

/// The library's `seats.rs`, with an added point at which another task may run; see `build.rs`.
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

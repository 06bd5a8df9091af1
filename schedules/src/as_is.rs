//! The schedules, run with the unbroken files of the library.

use crate::dispatch::{deferred_clears, document_locks};

/// The file of the library, with a replacement for `recv_many`, which shuttle lacks; see `build.rs`.
mod batching {
    include!(concat!(env!("OUT_DIR"), "/batching_as_is.rs"));
}

/// The file of the library, with an added point at which another task may run; see `build.rs`.
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

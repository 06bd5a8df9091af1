//! The schedules of deferred clears, whose flush begins to wait after it has read the state.

mod deferred_clears {
    include!(concat!(env!("OUT_DIR"), "/late_flush.rs"));
}

#[path = "deferring.rs"]
pub mod deferring;

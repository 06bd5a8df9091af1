//! The schedules of deferred clears, run with a copy whose flush begins to wait too late: after it has read the state.

mod deferred_clears {
    include!(concat!(env!("OUT_DIR"), "/late_flush.rs"));
}

#[path = "deferring.rs"]
pub mod deferring;

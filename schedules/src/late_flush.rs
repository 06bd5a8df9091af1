//! Runs the schedules of deferred clears with a broken copy: a flush asks to be notified too late, only after it has read the
//! state.

mod deferred_clears {
    include!(concat!(env!("OUT_DIR"), "/late_flush.rs"));
}

#[path = "deferring.rs"]
pub mod deferring;

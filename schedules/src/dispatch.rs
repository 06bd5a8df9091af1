//! The files of the library's `src/dispatch/` that the schedules need.

#[path = "../../src/dispatch/clears_under_way.rs"]
pub(crate) mod clears_under_way;
#[path = "../../src/dispatch/deferred_clears.rs"]
pub(crate) mod deferred_clears;
#[path = "../../src/dispatch/document_locks.rs"]
pub(crate) mod document_locks;
#[path = "../../src/dispatch/unsettled.rs"]
pub(crate) mod unsettled;

pub(crate) mod processor {
    use crate::observe::health::InFlight;

    /// Replaces the library's processor. The seats ask the processor whether it is available, and this one
    /// always is.
    #[derive(Debug, Default)]
    pub(crate) struct Processor;

    #[allow(clippy::unused_self, reason = "as in the library")]
    impl Processor {
        pub(crate) fn is_available(&self) -> bool {
            true
        }

        pub(crate) fn vitals(&self) -> &Self {
            self
        }

        pub(crate) fn enter(&self) -> InFlight {
            InFlight
        }
    }
}

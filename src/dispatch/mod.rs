//! Delivering what was saved: the inline dispatcher, and the processor that every dispatcher shares.

pub(crate) mod claim;
pub(crate) mod deferred_clears;
pub(crate) mod delivery;
pub(crate) mod document_locks;
pub(crate) mod inline;
pub(crate) mod oversized;
pub(crate) mod processor;
pub(crate) mod report;
pub(crate) mod retry;
pub(crate) mod settle;
pub(crate) mod under_lease;
pub(crate) mod unsettled;

pub use inline::{Dispatch, InlineBuilder, InlineDispatcher, Mode};
pub use processor::{Disposition, Pace, Processed, Processor, ProcessorSettings, STATE_DATABASE};
pub use retry::RetryPolicy;

//! Delivers saved messages: the inline dispatcher, and the processor that every dispatcher shares.

pub(crate) mod attempt;
pub(crate) mod builder;
pub(crate) mod claim;
pub(crate) mod claimed_entries;
pub(crate) mod clears_under_way;
pub(crate) mod deferred_clears;
pub(crate) mod deliveries;
pub(crate) mod document_locks;
pub(crate) mod due_again;
pub(crate) mod inline;
pub(crate) mod outcome;
pub(crate) mod oversized;
pub(crate) mod pass;
pub(crate) mod processor;
pub(crate) mod report;
pub(crate) mod retry;
pub(crate) mod seats;
pub(crate) mod settings;
pub(crate) mod settle;
pub(crate) mod settlement;
pub(crate) mod under_claim;
pub(crate) mod under_lease;
pub(crate) mod unsettled;

pub use builder::InlineBuilder;
pub use inline::{InlineDispatcher, Mode};
pub use outcome::{Dispatch, Disposition, Processed};
pub use processor::Processor;
pub use retry::RetryPolicy;
pub use settings::{Pace, ProcessorSettings, STATE_DATABASE};

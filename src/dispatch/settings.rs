//! How documents are processed.

use std::time::Duration;

use async_trait::async_trait;

use crate::dispatch::retry::RetryPolicy;

/// The library's own database, unless set otherwise.
pub const STATE_DATABASE: &str = "document_outbox";

/// How a [`Processor`](crate::dispatch::Processor) works.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ProcessorSettings {
    /// The prefix of every claim's value; shown to operators. Default: the process id.
    pub name: String,
    /// How long a claim lasts. Default 60 s, at least 500 ms. A delivery begins only while half of it is
    /// left, and is cut off when nine tenths have passed.
    pub claim_lease: Duration,
    /// The most entries in one claim. Default 100, at most 500.
    pub claim_limit: usize,
    /// How failures are retried.
    pub retry: RetryPolicy,
    /// Count claims, to notice messages that kill their process: on in workers, off inline. Default on.
    pub counts_claims: bool,
    /// The library's own database, for documents too large to be claimed in. Default `document_outbox`.
    pub state_database: String,
    /// Whether concurrent saves and claims go to MongoDB together, as one command with a statement each. Default on.
    pub group_commit: bool,
    /// The most messages that are published and not yet cleared. A process that is killed repeats at most
    /// that many. Default 256, at least 1.
    pub max_repeats: usize,
    /// The most bytes of outboxes in memory: an estimate of their size in memory, which is more than their
    /// stored bytes. A document that needs more is processed alone. Default 64 MiB.
    pub memory_bytes: usize,
}

impl Default for ProcessorSettings {
    fn default() -> Self {
        Self {
            name: format!("pid-{}", std::process::id()),
            claim_lease: Duration::from_mins(1),
            claim_limit: 100,
            retry: RetryPolicy::default(),
            counts_claims: true,
            state_database: STATE_DATABASE.into(),
            group_commit: true,
            max_repeats: 256,
            memory_bytes: 64 << 20,
        }
    }
}

impl ProcessorSettings {
    /// Changes some of them: `ProcessorSettings::default().with(|settings| settings.claim_limit = 10)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// How fast messages may be delivered. Asked before a claim and not during it, so that no claim expires while
/// it waits.
#[async_trait]
pub trait Pace: Send + Sync + 'static {
    /// Waits until messages may be claimed and delivered, and returns how many: at least one and at most
    /// `wanted`. Zero ends the pass as [`Processed::Interrupted`](crate::dispatch::Processed::Interrupted),
    /// without a claim. Cancel safe.
    async fn permits(&self, wanted: usize) -> usize;
}

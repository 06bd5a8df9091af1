//! Settings for processing documents.

use std::time::Duration;

use async_trait::async_trait;

use crate::dispatch::retry::RetryPolicy;

/// The default name of the library's own database.
pub const STATE_DATABASE: &str = "document_outbox";

/// The settings of a [`Processor`](crate::dispatch::Processor).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ProcessorSettings {
    /// The prefix of every claim's value. Operators see this prefix in stored entries. Default: the process id.
    pub name: String,
    /// The duration of a claim. Default 60 s, at least 500 ms. A delivery begins only while at least half of the
    /// claim's time is left, and is cut off when nine tenths have passed.
    pub claim_lease: Duration,
    /// Maximum number of entries in one claim. Default 100, at most 500.
    pub claim_limit: usize,
    /// How failures are retried.
    pub retry: RetryPolicy,
    /// Whether claims are counted, to detect messages that kill their process. Workers count claims, and the inline
    /// dispatcher does not. Default on.
    pub counts_claims: bool,
    /// The library's own database, for leases on documents that are too large for a claim. Default `document_outbox`.
    pub state_database: String,
    /// Whether concurrent saves and claims are sent to MongoDB together, in one command with a statement for each save
    /// or claim. Default on.
    pub group_commit: bool,
    /// Maximum number of messages that are published and not yet cleared. If the process is killed, at most this many
    /// messages are repeated. Default 256, at least 1.
    pub max_repeats: usize,
    /// Maximum memory for outboxes, in bytes. The limit applies to the estimated size in memory, which is larger than
    /// the stored size. A document that alone exceeds the limit is processed while no other document is being
    /// processed. Default 64 MiB.
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
    /// Changes some of the fields: `ProcessorSettings::default().with(|settings| settings.claim_limit = 10)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// Limits how fast messages are delivered. The processor asks for permits before it makes a claim, so that no claim
/// expires during the wait.
#[async_trait]
pub trait Pace: Send + Sync + 'static {
    /// Waits until messages may be claimed and delivered, and returns their number, which is at most `wanted`. If the
    /// number is zero, the pass ends as [`Processed::Interrupted`](crate::dispatch::Processed::Interrupted), without a
    /// claim. Must be cancel safe.
    async fn permits(&self, wanted: usize) -> usize;
}

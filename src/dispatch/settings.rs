//! How documents are processed.

use std::time::Duration;

use async_trait::async_trait;

use crate::dispatch::retry::RetryPolicy;

/// The library's own database, unless set otherwise.
pub const STATE_DATABASE: &str = "document_outbox";

/// How a [`Processor`](crate::dispatch::Processor) works.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorSettings {
    /// Begins every claim's value; shown to operators. Default: the process id.
    pub name: String,
    /// How long a claim holds. Default 60 s, at least 500 ms. A delivery is begun while half of it is left, and cut off when nine
    /// tenths have passed.
    pub lease: Duration,
    /// At most this many entries in one claim. Default 100, at most 500.
    pub claim_limit: usize,
    /// What is done about failures.
    pub retry: RetryPolicy,
    /// Count claims, to notice messages that kill their process: on in workers, off inline. Default on.
    pub counts_claims: bool,
    /// The library's own database, for documents too large to be claimed in. Default `document_outbox`.
    pub state_database: String,
    /// Whether concurrent saves and claims go to MongoDB together, as one command with a statement each. Default on.
    pub group_commit: bool,
    /// At most this many messages are published and not yet cleared. So many at most a process repeats that is killed. Default
    /// 256, at least 1.
    pub max_repeats: usize,
    /// At most this many bytes of outboxes are in memory, estimated with what they take beside their stored bytes. One document
    /// that needs more is processed alone. Default 64 MiB.
    pub memory_bytes: usize,
}

impl Default for ProcessorSettings {
    fn default() -> Self {
        Self {
            name: format!("pid-{}", std::process::id()),
            lease: Duration::from_mins(1),
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

/// How fast messages may be delivered. Asked before a claim and not under it, so that no claim runs out while it waits.
#[async_trait]
pub trait Pace: Send + Sync + 'static {
    /// Waits until messages may be claimed and delivered, and says how many: at least one and at most `wanted`. Zero ends the
    /// pass as [`Processed::Interrupted`](crate::dispatch::Processed::Interrupted), with nothing claimed. Cancel safe.
    async fn permits(&self, wanted: usize) -> usize;
}

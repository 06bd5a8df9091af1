//! The two steps of a stop.

use tokio_util::sync::CancellationToken;

/// The tokens of both steps. Clones share the same tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stops {
    /// Cancelled first: from then on no command is taken or kept, and no message waits for the rate limit.
    pub(crate) intake: CancellationToken,
    /// Cancelled second: from then on claims are released.
    pub(crate) release: CancellationToken,
}

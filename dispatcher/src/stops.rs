//! The two steps of a stop.

use tokio_util::sync::CancellationToken;

/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stops {
    /// No command is taken, none is kept, and none waits for the rate.
    pub(crate) intake: CancellationToken,
    /// Claims are released.
    pub(crate) release: CancellationToken,
}

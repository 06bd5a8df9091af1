//! The time span that the oplog covers.

use std::time::Duration;

/// The oldest and the newest second of the oplog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// Whether the oplog has not dropped any entry yet, so that it will cover more time later.
    pub(crate) whole: bool,
}

impl Window {
    pub(crate) fn length(self) -> Duration {
        Duration::from_secs(u64::from(self.last.saturating_sub(self.first)))
    }
}

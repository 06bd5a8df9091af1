//! How far the oplog reaches.

use std::time::Duration;

/// The oldest and the newest second of the oplog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// It has not dropped any entry yet, so it will reach back further than now.
    pub(crate) whole: bool,
}

impl Window {
    pub(crate) fn length(self) -> Duration {
        Duration::from_secs(u64::from(self.last.saturating_sub(self.first)))
    }
}

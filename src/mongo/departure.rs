//! Decides whether a write is sent to a server. The decision is made only once, either by the task that sends the write
//! or by a caller that no longer waits for it.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use mongodb::{ServerInfo, ServerType, options::SelectionCriteria};

use crate::mongo::concern::primary;

const WAITING: u8 = 0;
const LEFT: u8 = 1;
const CANCELLED: u8 = 2;

/// The state of one write. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Departure(Arc<AtomicU8>);

impl Departure {
    /// Marks the write as sent. Returns false if it was cancelled before.
    pub(crate) fn leave(&self) -> bool {
        let before = self.0.compare_exchange(WAITING, LEFT, Ordering::AcqRel, Ordering::Acquire);
        before.unwrap_or_else(|before| before) != CANCELLED
    }

    pub(crate) fn has_left(&self) -> bool {
        self.0.load(Ordering::Acquire) == LEFT
    }

    /// Cancels the write. Returns false if it was already sent.
    pub(crate) fn cancel(&self) -> bool {
        let before = self.0.compare_exchange(WAITING, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        before.unwrap_or_else(|before| before) != LEFT
    }
}

/// Selects a server that accepts writes, and marks these writes as sent at the moment of the selection. Until then they
/// have certainly not been sent, however long the search for a server takes.
pub(crate) fn leave_for_a_server(writes: Vec<Departure>) -> SelectionCriteria {
    if writes.iter().all(Departure::has_left) {
        return primary();
    }
    SelectionCriteria::Predicate(Arc::new(move |server: &ServerInfo<'_>| {
        takes_writes(server.server_type()) && writes.iter().all(Departure::leave)
    }))
}

fn takes_writes(server: ServerType) -> bool {
    matches!(
        server,
        ServerType::RsPrimary | ServerType::Mongos | ServerType::Standalone | ServerType::LoadBalancer
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_leaves_or_is_cancelled_and_never_both() {
        let left = Departure::default();
        assert!(left.leave() && left.leave() && left.has_left());
        assert!(!left.cancel());
        let cancelled = Departure::default();
        assert!(cancelled.cancel() && cancelled.cancel());
        assert!(!cancelled.leave() && !cancelled.has_left());
    }
}

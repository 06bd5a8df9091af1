//! Whether a write has left for a server, decided once: by the task that sends it, or by a caller who no longer waits.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use mongodb::{ServerInfo, ServerType, options::SelectionCriteria};

use crate::mongo::concern::primary;

const WAITING: u8 = 0;
const LEFT: u8 = 1;
const CANCELLED: u8 = 2;

/// Of one write; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Departure(Arc<AtomicU8>);

impl Departure {
    /// It leaves now, or has left before; false when it was cancelled.
    pub(crate) fn leave(&self) -> bool {
        let before = self.0.compare_exchange(WAITING, LEFT, Ordering::AcqRel, Ordering::Acquire);
        before.unwrap_or_else(|before| before) != CANCELLED
    }

    pub(crate) fn has_left(&self) -> bool {
        self.0.load(Ordering::Acquire) == LEFT
    }

    /// It will never leave; false when it has.
    pub(crate) fn cancel(&self) -> bool {
        let before = self.0.compare_exchange(WAITING, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        before.unwrap_or_else(|before| before) != LEFT
    }
}

/// Selects a server that takes writes, and notes that these writes leave for it. Before that they have certainly not been
/// sent, however long it takes to find a server.
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

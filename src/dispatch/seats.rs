//! Seats: how many saves' messages are in delivery at once, and how many bytes they may take.
//!
//! # Guarantees
//! - A save with a seat has room for its messages; no save waits for either.
//! - Closing waits for every save that asked for a seat before it, until that save has handed its messages over.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::{
    dispatch::processor::Processor,
    observe::{event::Shed, health::InFlight},
    stored::memory::{Memory, Room},
};

/// Longer than any polled save takes: the server's time, a read, and two writes. A save that has not ended by
/// then has been forgotten.
const SAVE_MAX: Duration = Duration::from_mins(2);

/// The seats of an inline dispatcher; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Seats {
    free: Arc<Semaphore>,
    /// The memory that the messages of all seats may take.
    memory: Memory,
    /// Saves whose messages are not in delivery yet.
    saves: TaskTracker,
    /// No new work is accepted.
    closing: CancellationToken,
}

/// The right to deliver one save's messages.
pub(crate) struct Seat {
    /// Closing waits for the save, until it has handed its messages over.
    pub(crate) save: TaskTrackerToken,
    pub(crate) taken: TakenSeat,
}

/// A seat that is taken, until dropped.
pub(crate) struct TakenSeat {
    _permit: OwnedSemaphorePermit,
    _room: Room,
    _in_flight: InFlight,
}

impl Seats {
    pub(crate) fn new(capacity: usize, memory: Memory) -> Self {
        Self {
            free: Arc::new(Semaphore::new(capacity.min(Semaphore::MAX_PERMITS))),
            memory,
            saves: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// A seat with room for messages of this weight, or why there is none.
    pub(crate) fn take(&self, processor: &Processor, weight: usize) -> Result<Seat, Shed> {
        // Before the check: closing waits for every save that has not noticed it.
        let save = self.saves.token();
        if self.closing.is_cancelled() {
            return Err(Shed::Stopped);
        }
        if !processor.is_available() {
            return Err(Shed::Unavailable);
        }

        let permit = self.free.clone().try_acquire_owned().map_err(|_full| Shed::Full)?;
        let room = self.memory.try_reserve(weight).ok_or(Shed::Full)?;
        let in_flight = processor.vitals().enter();
        Ok(Seat { save, taken: TakenSeat { _permit: permit, _room: room, _in_flight: in_flight } })
    }

    /// From now on no delivery gets a seat.
    pub(crate) fn close(&self) {
        self.closing.cancel();
        self.saves.close();
    }

    /// Waits until every save has handed its messages over, after [`close`](Self::close).
    pub(crate) async fn handed_over(&self) {
        if timeout(SAVE_MAX, self.saves.wait()).await.is_err() {
            tracing::debug!(saves = self.saves(), "unfinished saves are not waited for");
        }
    }

    /// How many saves have not handed their messages over yet.
    pub(crate) fn saves(&self) -> usize {
        self.saves.len()
    }
}

//! Seats limit the number of saves whose messages are in delivery at once, and the memory that these messages use.
//!
//! # Guarantees
//! - A save that has a seat also has room for its messages. No save waits for a seat or for room.
//! - Closing waits until every save that asked for a seat before the close has handed its messages over.

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

/// Maximum time of a save whose future is polled. Such a save asks for the server's time, reads once and writes twice.
/// A save that has not ended after this time is assumed to be abandoned.
const SAVE_MAX: Duration = Duration::from_mins(2);

/// The seats of an inline dispatcher. Clones share the same seats.
#[derive(Debug, Clone)]
pub(crate) struct Seats {
    free: Arc<Semaphore>,
    /// The memory limit for the messages of all seats.
    memory: Memory,
    /// Tracks saves whose messages are not in delivery yet.
    saves: TaskTracker,
    /// Cancelled when no new work is accepted.
    closing: CancellationToken,
}

/// The right to deliver one save's messages.
pub(crate) struct Seat {
    /// Makes closing wait until the save has handed its messages over.
    pub(crate) save: TaskTrackerToken,
    pub(crate) taken: TakenSeat,
}

/// A taken seat, which becomes free when this value is dropped.
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

    /// Takes a seat with room for messages of this size. Returns the reason if there is no such seat.
    pub(crate) fn take(&self, processor: &Processor, weight: usize) -> Result<Seat, Shed> {
        // Take the token before the check, so that closing waits for every save that has not noticed the close.
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

    /// Closes the seats. From now on no save gets a seat.
    pub(crate) fn close(&self) {
        self.closing.cancel();
        self.saves.close();
    }

    /// Waits until every save has handed its messages over, after [`close`](Self::close).
    pub(crate) async fn handed_over(&self) {
        if timeout(SAVE_MAX, self.saves.wait()).await.is_err() {
            tracing::debug!(saves = self.saves(), "not waiting any longer for unfinished saves");
        }
    }

    /// Number of saves that have not handed their messages over yet.
    pub(crate) fn saves(&self) -> usize {
        self.saves.len()
    }
}

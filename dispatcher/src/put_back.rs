//! Holds commands that this worker cannot process. After a pause, each command returns to the
//! broker for another worker.
//!
//! A command that is requeued at once is also redelivered at once, and the broker drops it after 20
//! deliveries. So the pause grows with each delivery, and a command expires before its 20th
//! delivery.
//!
//! Waiting commands take no room from other commands: the consumer's prefetch grows by the number
//! of waiting commands, but by at most [`MOST`].

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

/// The maximum by which the prefetch grows.
const MOST: usize = 4096;
/// The prefetch changes in steps of this size, because each change needs a new subscription.
const STEP: usize = 256;

/// The pause after a command's first few deliveries. If another worker can process the command, that
/// worker soon gets it.
const SHORT: Duration = Duration::from_secs(1);
const SHORT_TIMES: u32 = 4;
const LONGEST: Duration = Duration::from_secs(20);

/// The number of waiting commands.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    count: AtomicUsize,
    room: AtomicUsize,
}

/// Whether the consumer's prefetch has to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefetch {
    Changes,
    Stays,
}

impl Waiting {
    /// Counts one more waiting command, and returns whether the prefetch has to grow.
    pub(crate) fn begin(&self) -> Prefetch {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count > self.room.load(Ordering::Relaxed) { Prefetch::Changes } else { Prefetch::Stays }
    }

    /// Counts one waiting command fewer, and returns whether the prefetch changes: it returns to its base
    /// once no command waits.
    pub(crate) fn end(&self) -> Prefetch {
        let before = self.count.fetch_sub(1, Ordering::Relaxed);
        if before == 1 { Prefetch::Changes } else { Prefetch::Stays }
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The amount by which to raise the prefetch now. The amount becomes zero when no command waits
    /// any more; it doesn't fall with each command that leaves.
    pub(crate) fn room(&self) -> usize {
        let count = self.count();
        let room = if count == 0 {
            0
        } else {
            let wanted = count.div_ceil(STEP) * STEP;
            wanted.max(self.room.load(Ordering::Relaxed)).min(MOST)
        };

        self.room.store(room, Ordering::Relaxed);
        room
    }
}

/// The pause for a command that the broker has already delivered `delivery_count` times.
pub(crate) fn pause(delivery_count: u32) -> Duration {
    // Pauses of 256 s and more are shortened to the longest pause anyway.
    let doublings = delivery_count.saturating_sub(SHORT_TIMES - 1).min(8);
    (SHORT * 2u32.pow(doublings)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use document_outbox::command::{COMMAND_LIFETIME, COMMANDS_DELIVERY_LIMIT};

    use super::*;

    #[test]
    fn a_command_returns_quickly_at_first_then_rarely() {
        let seconds: Vec<u64> = (0..10).map(|count| pause(count).as_secs()).collect();
        assert_eq!(seconds, [1, 1, 1, 1, 2, 4, 8, 16, 20, 20]);
    }

    /// The pauses are this long so that a command usually ends by its expiration rather than by the
    /// delivery limit.
    #[test]
    fn the_pauses_last_about_a_commands_lifetime() {
        let all: Duration = (0..COMMANDS_DELIVERY_LIMIT).map(pause).sum();
        assert!(all > COMMAND_LIFETIME * 9 / 10, "{all:?}");
    }

    #[test]
    fn the_room_grows_in_steps_and_falls_once() {
        let waiting = Waiting::default();
        assert_eq!(waiting.room(), 0);
        assert_eq!(waiting.begin(), Prefetch::Changes, "it has to grow");
        assert_eq!(waiting.room(), STEP);
        for _ in 1..STEP {
            assert_eq!(waiting.begin(), Prefetch::Stays);
        }
        assert_eq!(waiting.begin(), Prefetch::Changes);
        assert_eq!(waiting.room(), 2 * STEP);
        for _ in 0..STEP {
            assert_eq!(waiting.end(), Prefetch::Stays);
        }
        assert_eq!(waiting.room(), 2 * STEP);
        assert_eq!(waiting.count(), 1);
        assert_eq!(waiting.end(), Prefetch::Changes, "none is left");
        assert_eq!(waiting.room(), 0);
        for _ in 0..10 * MOST {
            assert!(waiting.begin() == Prefetch::Changes || waiting.count() <= MOST);
        }
        assert_eq!(waiting.room(), MOST);
    }
}

//! Decides how many messages to take from the queue, and counts the bytes of the messages that are held.
//!
//! RabbitMQ limits the number of messages that it sends, not their bytes. So the number of messages to take is derived
//! from the size of the largest message of the last 10 to 20 seconds. The number is low at first, because the first
//! messages may be large.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The size of the largest message is remembered for at least this long, and at most twice as long.
const WINDOW: Duration = Duration::from_secs(10);
/// As long as no sizes are known, the assumed size of a message is the limit in bytes divided by this number.
const FIRST_GUESS: usize = 32;

/// The messages that are held, and the prefetch that follows from their sizes.
#[derive(Debug)]
pub(super) struct MessageIntake {
    prefetch: u16,
    bytes: usize,
    messages_held: AtomicUsize,
    bytes_held: AtomicUsize,
    sizes: Mutex<Sizes>,
}

/// Whether a message that was taken lowers the number of messages that may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefetchRoom {
    Less,
    AsBefore,
}

/// The largest message of the current window, and of the window before it.
#[derive(Debug)]
struct Sizes {
    began: Instant,
    largest: usize,
    largest_before: usize,
}

impl MessageIntake {
    pub(super) fn new(prefetch: u16, bytes: usize, now: Instant) -> Self {
        let sizes = Sizes { began: now, largest: 0, largest_before: bytes / FIRST_GUESS };
        Self {
            prefetch,
            bytes,
            messages_held: AtomicUsize::new(0),
            bytes_held: AtomicUsize::new(0),
            sizes: Mutex::new(sizes),
        }
    }

    /// Counts a message that was taken, and returns whether fewer messages may be held from now on.
    pub(super) fn took(&self, bytes: usize, now: Instant) -> PrefetchRoom {
        self.messages_held.fetch_add(1, Ordering::Relaxed);
        self.bytes_held.fetch_add(bytes, Ordering::Relaxed);
        let mut sizes = self.sizes.lock();
        sizes.turn(now);
        let before = prefetch(self.prefetch, self.bytes, sizes.seen());
        sizes.largest = sizes.largest.max(bytes);
        if prefetch(self.prefetch, self.bytes, sizes.seen()) < before {
            PrefetchRoom::Less
        } else {
            PrefetchRoom::AsBefore
        }
    }

    /// Subtracts a message that is no longer held.
    pub(super) fn released(&self, bytes: usize) {
        self.messages_held.fetch_sub(1, Ordering::Relaxed);
        self.bytes_held.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn held(&self) -> (usize, usize) {
        (self.messages_held.load(Ordering::Relaxed), self.bytes_held.load(Ordering::Relaxed))
    }

    /// The number of messages that may be held now.
    pub(super) fn prefetch(&self, now: Instant) -> u16 {
        let mut sizes = self.sizes.lock();
        sizes.turn(now);
        prefetch(self.prefetch, self.bytes, sizes.seen())
    }
}

impl Sizes {
    fn seen(&self) -> usize {
        self.largest.max(self.largest_before)
    }

    fn turn(&mut self, now: Instant) {
        let passed = now - self.began;
        if passed < WINDOW {
            return;
        }
        self.largest_before = if passed < 2 * WINDOW { self.largest } else { 0 };
        self.largest = 0;
        self.began = now;
    }
}

/// The prefetch if the largest message has `largest` bytes. The consumer must subscribe again after each change, so
/// the prefetch changes only by powers of two.
fn prefetch(most: u16, bytes: usize, largest: usize) -> u16 {
    let size = largest.max(1).checked_next_power_of_two().unwrap_or(usize::MAX);
    let fit = u16::try_from(bytes / size).unwrap_or(u16::MAX);
    most.min(fit).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_prefetch_follows_the_largest_message_seen_lately() {
        let start = Instant::now();
        let intake = MessageIntake::new(256, 64 * MIB, start);
        assert_eq!(intake.prefetch(start), 32, "sizes are unknown");
        let later = start + 2 * WINDOW;
        assert_eq!(intake.prefetch(later), 256);
        assert_eq!(intake.took(5 * MIB, later), PrefetchRoom::Less);
        assert_eq!(intake.took(5 * MIB, later), PrefetchRoom::AsBefore);
        assert_eq!(intake.prefetch(later), 8);
        assert_eq!(intake.prefetch(later + WINDOW), 8);
        assert_eq!(intake.prefetch(later + 2 * WINDOW), 256);
    }

    #[test]
    fn a_message_above_the_bound_is_taken_alone() {
        assert_eq!(prefetch(256, MIB, 100 * MIB), 1);
        assert_eq!(prefetch(256, MIB, 0), 256);
    }

    #[test]
    fn held_bytes_are_released_with_their_messages() {
        let intake = MessageIntake::new(8, MIB, Instant::now());
        intake.took(10, Instant::now());
        intake.took(5, Instant::now());
        intake.released(10);
        assert_eq!(intake.held(), (1, 5));
    }
}

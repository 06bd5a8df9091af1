//! Remembers which messages of each key wait in the delay queue, in order.
//!
//! While messages of a key wait in the delay queue, only the first of these messages may be handled. Other messages of
//! the key, including new ones, go to the delay queue too. The delay queue returns messages in the order in which they
//! entered it, and this module remembers each message's place in the order of its key. So the messages of a key are
//! handled in the order in which they first arrived.
//!
//! # Caveats
//! Each process has its own memory of the delayed messages. A message that doesn't return, because another process
//! took it, is forgotten after a while; then the next message becomes the first. If more than [`MOST`] messages wait,
//! the order is given up for the messages beyond this number.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// The maximum number of messages that are remembered, over all keys.
pub(super) const MOST: usize = 10_000;

/// Whether a message may be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Handle,
    /// Another message of the key waits in the delay queue, so this message must go to the delay queue too.
    Follow,
}

/// Whether a message that goes to the delay queue keeps its place in the order of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Kept,
    GivenUp,
}

/// The waiting messages of each key.
#[derive(Debug)]
pub(super) struct DelayedMessages {
    keys: HashMap<String, VecDeque<DelayedMessage>>,
    count: usize,
    /// How long a message may be absent before it is forgotten.
    patience: Duration,
}

#[derive(Debug)]
struct DelayedMessage {
    id: String,
    seen: Instant,
}

impl DelayedMessages {
    pub(super) fn new(delay: Duration) -> Self {
        // The message returns after the delay, and may then wait in a long queue.
        Self { keys: HashMap::new(), count: 0, patience: delay * 3 + Duration::from_mins(1) }
    }

    /// Whether a message of this key is handled now, or follows an earlier message into the delay queue.
    pub(super) fn turn(&mut self, key: &str, id: &str, now: Instant) -> Turn {
        self.forget_lost(key, now);
        match self.keys.get(key).and_then(VecDeque::front) {
            Some(first) if first.id != id => Turn::Follow,
            _ => Turn::Handle,
        }
    }

    /// Notes that a message of this key goes to the delay queue, for the first time or again.
    pub(super) fn delay(&mut self, key: &str, id: &str, now: Instant) -> Place {
        if let Some(queue) = self.keys.get_mut(key)
            && let Some(known) = queue.iter_mut().find(|known| known.id == id)
        {
            known.seen = now;
            return Place::Kept;
        }

        // Forget messages that never returned. Otherwise such messages would occupy their places until their keys
        // occur again.
        if self.count >= MOST {
            let patience = self.patience;
            self.keys.retain(|_, queue| {
                self.count -= forget_lost(queue, patience, now);
                !queue.is_empty()
            });
        }
        if self.count >= MOST {
            return Place::GivenUp;
        }
        self.keys
            .entry(key.to_owned())
            .or_default()
            .push_back(DelayedMessage { id: id.to_owned(), seen: now });
        self.count += 1;
        Place::Kept
    }

    /// Notes that a message is settled.
    pub(super) fn settled(&mut self, key: &str, id: &str) {
        let Some(queue) = self.keys.get_mut(key) else { return };
        let before = queue.len();
        queue.retain(|known| known.id != id);
        self.count -= before - queue.len();
        if queue.is_empty() {
            self.keys.remove(key);
        }
    }

    fn forget_lost(&mut self, key: &str, now: Instant) {
        let Some(queue) = self.keys.get_mut(key) else { return };
        self.count -= forget_lost(queue, self.patience, now);
        if queue.is_empty() {
            self.keys.remove(key);
        }
    }
}

/// Removes the first messages of a key while they have been absent for too long. Returns the number of removed messages.
fn forget_lost(queue: &mut VecDeque<DelayedMessage>, patience: Duration, now: Instant) -> usize {
    let before = queue.len();
    while queue.front().is_some_and(|first| now - first.seen > patience) {
        queue.pop_front();
    }
    before - queue.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(10);

    #[test]
    fn later_messages_of_a_key_follow_a_delayed_one() {
        let (mut delayed, now) = (DelayedMessages::new(DELAY), Instant::now());
        assert_eq!(delayed.turn("k", "1", now), Turn::Handle);
        delayed.delay("k", "1", now);
        assert_eq!(
            (delayed.turn("k", "2", now), delayed.turn("other", "2", now)),
            (Turn::Follow, Turn::Handle)
        );
        delayed.delay("k", "2", now);

        // The first message returns and fails again, so the second must wait for it.
        assert_eq!(delayed.turn("k", "1", now), Turn::Handle);
        delayed.delay("k", "1", now);
        assert_eq!(delayed.turn("k", "2", now), Turn::Follow);

        delayed.settled("k", "1");
        assert_eq!((delayed.turn("k", "3", now), delayed.turn("k", "2", now)), (Turn::Follow, Turn::Handle));
        delayed.settled("k", "2");
        assert_eq!(delayed.turn("k", "3", now), Turn::Handle);
        assert_eq!((delayed.count, delayed.keys.len()), (0, 0));
    }

    #[test]
    fn a_message_that_never_returns_blocks_its_key_for_a_while() {
        let (mut delayed, now) = (DelayedMessages::new(DELAY), Instant::now());
        delayed.delay("k", "1", now);
        let patience = delayed.patience;
        assert_eq!(delayed.turn("k", "2", now + patience), Turn::Follow);
        assert_eq!(delayed.turn("k", "2", now + patience + DELAY), Turn::Handle);
    }

    #[test]
    fn the_memory_of_delayed_messages_is_bounded() {
        let (mut delayed, now) = (DelayedMessages::new(DELAY), Instant::now());
        for nth in 0..MOST {
            assert_eq!(delayed.delay(&format!("k{nth}"), "1", now), Place::Kept);
        }
        assert_eq!(delayed.delay("more", "1", now), Place::GivenUp);
        assert_eq!(delayed.delay("k0", "1", now), Place::Kept, "it is known");
    }

    #[test]
    fn messages_that_never_returned_make_room() {
        let (mut delayed, now) = (DelayedMessages::new(DELAY), Instant::now());
        for nth in 0..MOST {
            delayed.delay(&format!("k{nth}"), "1", now);
        }
        let later = now + delayed.patience + DELAY;
        assert_eq!(delayed.delay("more", "1", later), Place::Kept);
        assert_eq!((delayed.count, delayed.keys.len()), (1, 1));
    }
}

//! Handles messages of the same key one after another, in the order of their arrival. A message doesn't wait for messages of
//! other keys.
//!
//! While a failed message is held and tried again, its key is blocked, and later messages of the key are held in
//! memory. The number of held messages is bounded, because they count towards the prefetch.

use std::collections::{HashMap, VecDeque};

use parking_lot::{Mutex, MutexGuard};

use crate::receive::decide::RetryRoom;

/// The messages of each key, in the order of their arrival. `T` is the type of a message.
#[derive(Debug)]
pub(super) struct KeyOrder<T> {
    most_held: usize,
    keys: Mutex<KeyStates<T>>,
}

#[derive(Debug)]
struct KeyStates<T> {
    keys: HashMap<String, KeyState<T>>,
    /// The number of messages that are tried again, including the later messages of their keys.
    held: usize,
}

#[derive(Debug)]
struct KeyState<T> {
    behind: VecDeque<T>,
    is_retried: bool,
}

impl<T> KeyOrder<T> {
    pub(super) fn new(most_held: usize) -> Self {
        Self { most_held, keys: Mutex::new(KeyStates { keys: HashMap::new(), held: 0 }) }
    }

    /// Returns the message itself if it is the first of its key; otherwise keeps it until [`next`](Self::next) returns it.
    pub(super) fn enter(&self, key: &str, message: T) -> Option<T> {
        let mut states = self.lock();
        let Some(state) = states.keys.get_mut(key) else {
            let state = KeyState { behind: VecDeque::new(), is_retried: false };
            states.keys.insert(key.to_owned(), state);
            return Some(message);
        };

        state.behind.push_back(message);
        let is_retried = state.is_retried;
        states.held += usize::from(is_retried);
        None
    }

    /// Returns the next message of a key whose current message is settled.
    pub(super) fn next(&self, key: &str) -> Option<T> {
        let mut states = self.lock();
        let next = states.keys.get_mut(key)?.behind.pop_front();
        if next.is_none() {
            states.keys.remove(key);
        }
        next
    }

    /// Notes that the current message of a key is tried again, until the guard is dropped. A message without a key blocks no
    /// other message.
    pub(super) fn retry<'a>(&'a self, key: Option<&'a str>) -> Retried<'a, T> {
        let mut states = self.lock();
        let held = match key.and_then(|key| states.keys.get_mut(key)) {
            Some(state) => {
                state.is_retried = true;
                1 + state.behind.len()
            }
            None => 1,
        };
        states.held += held;
        Retried { order: self, key }
    }

    /// Whether the current message of a key can be held for another try. The message is not held yet.
    pub(super) fn room(&self, key: Option<&str>) -> RetryRoom {
        let states = self.lock();
        let behind = key.and_then(|key| states.keys.get(key)).map_or(0, |state| state.behind.len());
        if states.held + 1 + behind > self.most_held { RetryRoom::Full } else { RetryRoom::Left }
    }

    /// The number of messages that are tried again, including the later messages of their keys.
    pub(super) fn held(&self) -> usize {
        self.lock().held
    }

    fn lock(&self) -> MutexGuard<'_, KeyStates<T>> {
        self.keys.lock()
    }
}

/// The guard of a message that is tried again, see [`KeyOrder::retry`].
pub(super) struct Retried<'a, T> {
    order: &'a KeyOrder<T>,
    key: Option<&'a str>,
}

impl<T> Drop for Retried<'_, T> {
    fn drop(&mut self) {
        let mut states = self.order.lock();
        let held = match self.key.and_then(|key| states.keys.get_mut(key)) {
            Some(state) => {
                state.is_retried = false;
                1 + state.behind.len()
            }
            None => 1,
        };
        states.held -= held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_key_follow_each_other() {
        let order = KeyOrder::new(10);
        assert_eq!(order.enter("a", 1), Some(1));
        assert_eq!((order.enter("a", 2), order.enter("a", 3), order.enter("b", 4)), (None, None, Some(4)));
        assert_eq!((order.next("a"), order.next("a"), order.next("a")), (Some(2), Some(3), None));
        assert_eq!(order.enter("a", 5), Some(5));
    }

    #[test]
    fn a_retried_message_holds_those_behind_it() {
        let order = KeyOrder::new(4);
        order.enter("a", 1);
        order.enter("a", 2);
        {
            let _retried = order.retry(Some("a"));
            assert_eq!(order.held(), 2);
            order.enter("a", 3);
            let _other = order.retry(None);
            assert_eq!((order.held(), order.room(None)), (4, RetryRoom::Full));
        }
        assert_eq!((order.held(), order.room(Some("a"))), (0, RetryRoom::Left));
        assert_eq!(KeyOrder::<u8>::new(0).room(None), RetryRoom::Full);
    }
}

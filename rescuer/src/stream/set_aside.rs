//! Remembers collections whose documents can't be read while other collections can.
//!
//! A missing privilege, an unreachable shard or a long lock can make reads of one collection fail
//! for hours. The stream serves many collections, so it doesn't wait for the failing one. The
//! failing collection's changes are skipped, and a full round of the sweep finds its messages as
//! soon as it can be read. Meanwhile the stream retries the collection at growing intervals.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mongodb::Namespace;

/// How long a read is repeated before its collection is set aside. An election is over by then.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);

/// The collections that are set aside.
#[derive(Debug, Default)]
pub(crate) struct SetAside(HashMap<Namespace, Again>);

#[derive(Debug)]
struct Again {
    pause: Duration,
    at: Instant,
}

impl SetAside {
    pub(crate) fn contains(&self, namespace: &Namespace) -> bool {
        self.0.contains_key(namespace)
    }

    /// Whether the collection should not be retried yet.
    pub(crate) fn waits(&self, namespace: &Namespace) -> bool {
        self.0.get(namespace).is_some_and(|again| Instant::now() < again.at)
    }

    /// Sets a collection aside, each time for longer than the time before.
    pub(crate) fn put(&mut self, namespace: &Namespace) {
        let new = Again { pause: SHORTEST / 2, at: Instant::now() };
        let again = self.0.entry(namespace.clone()).or_insert(new);
        again.pause = (again.pause * 2).min(LONGEST);
        again.at = Instant::now() + again.pause;
    }

    /// Removes a collection that can be read again.
    pub(crate) fn take_back(&mut self, namespace: &Namespace) {
        self.0.remove(namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_waits_longer_each_time() {
        let (mut aside, namespace) = (SetAside::default(), Namespace::new("shop", "audit"));
        assert!(!aside.waits(&namespace));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            aside.put(&namespace);
            assert!(aside.waits(&namespace));
            pauses.push(aside.0[&namespace].pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);

        aside.take_back(&namespace);
        assert!(!aside.contains(&namespace) && !aside.waits(&namespace));
    }
}

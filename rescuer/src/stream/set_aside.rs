//! Collections whose documents can't be looked up, while others can.
//!
//! A missing privilege, a shard that is away, a lock that lasts: one collection's look-ups can fail for hours. The stream doesn't
//! wait for it, since it is one stream for many collections. Its changes are passed over, and the sweep owes them a full round,
//! which finds what they were about as soon as the collection can be read. Meanwhile the stream tries it again, ever more
//! seldom.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mongodb::Namespace;

/// A look-up is repeated for this long before its collection is set aside; elections are over by then.
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

    /// Whether it is not to be tried yet.
    pub(crate) fn waits(&self, namespace: &Namespace) -> bool {
        self.0.get(namespace).is_some_and(|again| Instant::now() < again.at)
    }

    /// Sets a collection aside, for longer each time.
    pub(crate) fn put(&mut self, namespace: &Namespace) {
        let new = Again { pause: SHORTEST / 2, at: Instant::now() };
        let again = self.0.entry(namespace.clone()).or_insert(new);
        again.pause = (again.pause * 2).min(LONGEST);
        again.at = Instant::now() + again.pause;
    }

    /// It can be looked up again.
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

//! A bounded memory of what was queued lately, so that a stuck document doesn't get a command every round.
//!
//! A document whose outbox is found in the same state as when it was queued waits for a pause that doubles each time; one
//! whose outbox has changed (another head, another claim, another failure) is new. Forgetting costs a doubled command
//! and nothing else, so the memory may forget; it may not grow.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use document_outbox::DocumentRef;
use mongodb::Namespace;

use crate::verdict::Head;

/// The longest pause is this many times the first.
const LONGEST: u32 = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Queued {
    pause: Duration,
    capacity: usize,
    documents: HashMap<u64, Hint>,
    round: u64,
}

#[derive(Debug)]
struct Hint {
    collection: u64,
    state: u64,
    sent: Instant,
    pause: Duration,
    /// The last round of the sweep in which it was still due.
    round: u64,
}

/// What the memory says of a document that wants a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Queue it.
    Queue,
    /// It was queued lately in this very state.
    Wait,
    /// Nothing can be forgotten yet: the queue has enough to do.
    Full,
}

impl Queued {
    pub(crate) fn new(capacity: usize, pause: Duration) -> Self {
        Self { pause, capacity: capacity.max(1), documents: HashMap::new(), round: 0 }
    }

    /// Begins a round of the sweep.
    pub(crate) fn begin_round(&mut self) {
        self.round += 1;
    }

    /// Asked by the sweep for each document that wants a command.
    pub(crate) fn admit(&mut self, document: &DocumentRef, head: &Head, now: Instant) -> Admission {
        let full = self.documents.len() >= self.capacity;
        match self.documents.get_mut(&hash(&document.map_key())) {
            Some(hint) => {
                hint.round = self.round;
                let waits = hint.state == hash(head) && now.saturating_duration_since(hint.sent) < hint.pause;
                if waits { Admission::Wait } else { Admission::Queue }
            }
            None if full => Admission::Full,
            None => Admission::Queue,
        }
    }

    /// Told for each command that the broker confirmed.
    pub(crate) fn note(&mut self, document: &DocumentRef, head: &Head, now: Instant) {
        let (key, state) = (hash(&document.map_key()), hash(head));
        let longest = self.pause * LONGEST;
        let pause = match self.documents.get(&key) {
            Some(hint) if hint.state == state => (hint.pause * 2).min(longest),
            // The stream's hints are not refused, only not remembered.
            None if self.documents.len() >= self.capacity => return,
            _ => self.pause,
        };
        let collection = hash(&document.namespace);
        let hint = Hint { collection, state, sent: now, pause, round: self.round };
        self.documents.insert(key, hint);
    }

    /// Ends a round for a collection: what was not found due in it any more is forgotten, once its pause is over or room
    /// is short.
    pub(crate) fn end_round(&mut self, namespace: &Namespace, now: Instant) {
        let (collection, round) = (hash(namespace), self.round);
        let short = self.documents.len() >= self.capacity / 2;
        self.documents.retain(|_, hint| {
            let over = now.saturating_duration_since(hint.sent) >= hint.pause;
            hint.collection != collection || hint.round == round || !(over || short)
        });
    }

    /// Forgets everything of collections that are gone.
    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
        let known: Vec<u64> = namespaces.iter().map(hash).collect();
        self.documents.retain(|_, hint| known.contains(&hint.collection));
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use document_outbox::deliverable::Ordering;
    use mongodb::bson::{Bson, DateTime, Uuid, doc};

    use super::*;
    use crate::verdict::{Moment, judge};

    const PAUSE: Duration = Duration::from_secs(60);

    fn head() -> Head {
        let outbox = Bson::Array(vec![doc! { "id": Uuid::new(), "type": "t" }.into()]);
        let moment = Moment::sweeping(DateTime::now(), Duration::ZERO);
        judge(Some(&outbox), Ordering::Ordered, moment).work.unwrap()
    }

    fn document(id: i32) -> DocumentRef {
        DocumentRef::by_id(orders(), id)
    }

    fn orders() -> Namespace {
        Namespace::new("shop", "orders")
    }

    #[test]
    fn the_same_state_waits_for_a_pause_that_doubles_up_to_sixteen_times_the_first() {
        let (mut queued, head, mut now) = (Queued::new(10, PAUSE), head(), Instant::now());
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue);
        for factor in [1, 2, 4, 8, 16, 16] {
            queued.note(&document(1), &head, now);
            now += PAUSE * factor;
            let just_before = now - Duration::from_millis(1);
            assert_eq!(queued.admit(&document(1), &head, just_before), Admission::Wait, "{factor}");
            assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue, "{factor}");
        }
    }

    #[test]
    fn another_head_is_new_and_starts_from_the_first_pause() {
        let (mut queued, now) = (Queued::new(10, PAUSE), Instant::now());
        queued.note(&document(1), &head(), now);
        let other = head();
        assert_eq!(queued.admit(&document(1), &other, now), Admission::Queue);
        queued.note(&document(1), &other, now);
        assert_eq!(queued.admit(&document(1), &other, now + PAUSE), Admission::Queue);
    }

    #[test]
    fn a_full_memory_admits_nothing_new_until_something_is_done() {
        let (mut queued, head, now) = (Queued::new(2, PAUSE), head(), Instant::now());
        queued.begin_round();
        queued.note(&document(1), &head, now);
        queued.note(&document(2), &head, now);
        assert_eq!(queued.admit(&document(3), &head, now), Admission::Full);
        queued.begin_round();
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Wait);
        queued.end_round(&orders(), now);
        assert_eq!(queued.admit(&document(3), &head, now), Admission::Queue, "2 was delivered");
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Wait, "1 is remembered");
    }

    #[test]
    fn collections_that_are_gone_are_forgotten() {
        let (mut queued, head, now) = (Queued::new(10, PAUSE), head(), Instant::now());
        queued.note(&document(1), &head, now);
        queued.keep_only(&[Namespace::new("shop", "stock")]);
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue);
    }
}

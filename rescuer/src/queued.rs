//! A bounded memory of what was queued lately, so that a stuck document doesn't get a command every round.
//!
//! A document whose outbox is found in the same state as when it was queued waits for a pause, which doubles when the
//! document is queued again after it; one whose outbox has changed (another head, another claim, another failure) is new.
//! Forgetting costs a doubled command and nothing else, so the memory may forget; it may not grow.
//!
//! # When it is full
//! Those whose pause is over are forgotten. If that makes no room, the sweep queues without remembering, up to
//! [`UNREMEMBERED`] documents a round, and each round goes on behind those of the round before, so that everyone has a turn.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use document_outbox::DocumentRef;
use mongodb::Namespace;

use crate::verdict::Head;

/// Pauses don't grow beyond this.
const LONGEST: Duration = Duration::from_secs(120);
/// How many documents a round queues without remembering them, but not more than can be remembered.
const UNREMEMBERED: usize = 1000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Queued {
    began: Instant,
    pause: Duration,
    capacity: usize,
    documents: HashMap<u64, Hint>,
    round: u32,
    rota: Rota,
}

/// As small as can be, since there are so many: times in milliseconds, the rest shortened. Where that takes two collections or two
/// rounds for one, a command is doubled.
#[derive(Debug)]
struct Hint {
    state: u64,
    /// When the pause ends, since the memory began.
    ends: u64,
    pause: u32,
    collection: u32,
    /// The last round of the sweep in which it was still due.
    round: u32,
}

/// Whose turn it is among those for whom there is no room.
#[derive(Debug, Default)]
struct Rota {
    /// How many of them had their turn in the rounds before.
    skip: usize,
    /// How many came by in this round.
    came: usize,
    /// Whether what could be forgotten was forgotten in this round.
    tidied: bool,
}

/// What the memory says of a document that wants a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Queue it.
    Queue,
    /// It was queued lately in this very state.
    Wait,
    /// It cannot be remembered, and so many were queued without that it has to wait for another round.
    Full,
}

impl Queued {
    pub(crate) fn new(capacity: usize, pause: Duration) -> Self {
        let capacity = capacity.max(1);
        let began = Instant::now();
        Self { began, pause, capacity, documents: HashMap::new(), round: 0, rota: Rota::default() }
    }

    /// Begins a round of the sweep.
    pub(crate) fn begin_round(&mut self) {
        self.round = self.round.wrapping_add(1);
        let next = self.rota.skip + self.turns();
        let skip = if self.rota.came > next { next } else { 0 };
        self.rota = Rota { skip, came: 0, tidied: false };
    }

    /// Asked by the sweep for each document that wants a command.
    pub(crate) fn admit(&mut self, document: &DocumentRef, head: &Head, now: Instant) -> Admission {
        let now = self.since_began(now);
        if let Some(hint) = self.documents.get_mut(&hash(&document.map_key())) {
            hint.round = self.round;
            let waits = hint.state == hash(head) && !hint.is_over(now);
            return if waits { Admission::Wait } else { Admission::Queue };
        }
        if self.is_full() && !std::mem::replace(&mut self.rota.tidied, true) {
            self.documents.retain(|_, hint| !hint.is_over(now));
        }
        if !self.is_full() {
            return Admission::Queue;
        }
        let turn = self.rota.came;
        self.rota.came += 1;
        match (self.rota.skip..self.rota.skip + self.turns()).contains(&turn) {
            true => Admission::Queue,
            false => Admission::Full,
        }
    }

    /// Told for each command that the broker confirmed.
    pub(crate) fn note(&mut self, document: &DocumentRef, head: &Head, now: Instant) {
        let (key, state, now) = (hash(&document.map_key()), hash(head), self.since_began(now));
        let millis = |pause: Duration| u32::try_from(pause.as_millis()).unwrap_or(u32::MAX);
        let longest = millis(LONGEST.max(self.pause));
        let pause = match self.documents.get(&key) {
            Some(hint) if hint.state == state && hint.is_over(now) => {
                hint.pause.saturating_mul(2).min(longest)
            }
            // The stream came by before the pause was over, which says nothing about how stuck it is.
            Some(hint) if hint.state == state => hint.pause,
            None if self.is_full() => return,
            _ => millis(self.pause),
        };
        let (collection, ends) = (short(&document.namespace), now + u64::from(pause));
        self.documents.insert(key, Hint { state, ends, pause, collection, round: self.round });
    }

    /// Ends a round for a collection: what was not found due in it any more is forgotten, once its pause is over or room
    /// is short.
    pub(crate) fn end_round(&mut self, namespace: &Namespace, now: Instant) {
        let (collection, round, now) = (short(namespace), self.round, self.since_began(now));
        let is_short = self.documents.len() >= self.capacity / 2;
        self.documents.retain(|_, hint| {
            hint.collection != collection || hint.round == round || !(is_short || hint.is_over(now))
        });
    }

    /// Forgets everything of collections that are gone.
    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
        let known: Vec<u32> = namespaces.iter().map(short).collect();
        self.documents.retain(|_, hint| known.contains(&hint.collection));
    }

    /// In milliseconds.
    fn since_began(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    fn is_full(&self) -> bool {
        self.documents.len() >= self.capacity
    }

    fn turns(&self) -> usize {
        UNREMEMBERED.min(self.capacity)
    }
}

impl Hint {
    fn is_over(&self, now: u64) -> bool {
        now >= self.ends
    }
}

fn short(namespace: &Namespace) -> u32 {
    (hash(namespace) >> 32) as u32
}

/// Equal for equal values within one process.
pub(crate) fn hash(value: &impl Hash) -> u64 {
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

    const PAUSE: Duration = Duration::from_secs(30);

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
    fn the_same_state_waits_for_a_pause_that_doubles_up_to_two_minutes() {
        let (mut queued, head, mut now) = (Queued::new(10, PAUSE), head(), Instant::now());
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue);
        for factor in [1, 2, 4, 4] {
            queued.note(&document(1), &head, now);
            now += PAUSE * factor;
            let just_before = now - Duration::from_millis(1);
            assert_eq!(queued.admit(&document(1), &head, just_before), Admission::Wait, "{factor}");
            assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue, "{factor}");
        }
    }

    #[test]
    fn what_the_stream_queues_within_the_pause_does_not_lengthen_it() {
        let (mut queued, head, now) = (Queued::new(10, PAUSE), head(), Instant::now());
        for _ in 0..5 {
            queued.note(&document(1), &head, now);
        }
        assert_eq!(queued.admit(&document(1), &head, now + PAUSE), Admission::Queue);
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
    fn a_full_memory_gives_everyone_a_turn_within_a_few_rounds() {
        let (mut queued, head, now) = (Queued::new(2, PAUSE), head(), Instant::now());
        let round = |queued: &mut Queued| -> Vec<i32> {
            queued.begin_round();
            let admitted = |id: &i32| queued.admit(&document(*id), &head, now) == Admission::Queue;
            let admitted: Vec<i32> = (1..=7).filter(admitted).collect();
            admitted.iter().for_each(|id| queued.note(&document(*id), &head, now));
            admitted
        };
        queued.note(&document(1), &head, now);
        queued.note(&document(2), &head, now);
        let rounds: Vec<_> = (0..4).map(|_| round(&mut queued)).collect();
        assert_eq!(rounds, [vec![3, 4], vec![5, 6], vec![7], vec![3, 4]]);
    }

    #[test]
    fn a_full_memory_forgets_those_whose_pause_is_over_and_those_that_are_done() {
        let (mut queued, head, now) = (Queued::new(2, PAUSE), head(), Instant::now());
        let full = |queued: &mut Queued| {
            queued.begin_round();
            queued.note(&document(1), &head, now);
            queued.note(&document(2), &head, now);
            queued.begin_round();
        };
        full(&mut queued);
        assert_eq!(queued.admit(&document(3), &head, now + PAUSE), Admission::Queue);
        queued.note(&document(3), &head, now + PAUSE);
        assert_eq!(queued.admit(&document(3), &head, now + PAUSE), Admission::Wait, "3 is remembered");
        let mut queued = Queued::new(2, PAUSE);
        full(&mut queued);
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Wait);
        queued.end_round(&orders(), now);
        queued.note(&document(3), &head, now);
        assert_eq!(queued.admit(&document(3), &head, now), Admission::Wait, "2 was delivered");
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

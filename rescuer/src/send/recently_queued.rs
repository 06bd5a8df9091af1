//! A bounded memory of the documents that were queued lately, so that a stuck document doesn't get a command every round.
//!
//! A document whose outbox is found in the same state as when it was queued waits for a pause, which doubles
//! when the document is queued again after it; one whose outbox has changed (another head, another claim,
//! another failure) is new. Forgetting only costs a duplicate command, so the memory may forget; it must not
//! grow.
//!
//! # What bounds the queue of commands
//! The sweep queues only documents that it can remember. A full memory makes it wait until pauses end, which
//! takes two minutes at most. A command expires in the broker. So at any time the queue holds, for each of at
//! most [`Settings::queued_capacity`](crate::Settings::queued_capacity) documents, the commands of one
//! expiry, plus those of the documents that the change stream has shown since.
//!
//! # When it is full
//! Documents whose pause is over are forgotten. If that makes no room, a collection below its share takes
//! room from the largest, so that one collection's backlog stops no other. All others wait: the sweep keeps
//! its place and continues there, so every document gets its turn.
//!
//! # Entries without a date
//! A document that was queued for such an entry isn't among those that the sweep reads in every round. So the memory also
//! holds, for each collection, whether there were any since the sweep last found none.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use document_outbox::DocumentRef;
use mongodb::Namespace;

use crate::{hash::hash, judge::verdict::Head};

/// Pauses don't grow beyond this.
const LONGEST: Duration = Duration::from_mins(2);
/// A document for which no command can be made waits this long, unless its outbox changes.
const UNSENDABLE: Duration = Duration::from_hours(1);
/// How many documents of the largest collection are forgotten at a time, to make room for a smaller one.
const FORGOTTEN_AT_ONCE: usize = 100;
/// A full memory is searched for documents to forget every tenth of a pause, or of this if it is shorter.
const TIDY_WITHIN: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct RecentlyQueued {
    began: Instant,
    pause: Duration,
    capacity: usize,
    /// How many documents are remembered in all collections.
    len: usize,
    /// By a hash of their names. A collision only costs a duplicate command.
    collections: HashMap<u64, QueuedCollection>,
    /// Until then, expired documents are not searched again, because the search reads every document.
    tidy_after: u64,
}

/// What is remembered of one collection.
#[derive(Debug, Default)]
struct QueuedCollection {
    documents: HashMap<u64, QueuedDocument>,
    /// How often the sweep has begun to read the collection.
    sweep: u32,
    undated: Undated,
}

/// Whether documents were queued for an entry without a date, and not known to be done.
#[derive(Debug, Default, Clone, Copy)]
struct Undated {
    waiting: bool,
    /// How many were queued.
    noted: u64,
}

/// As small as possible, because there are very many: times in milliseconds, the rest shortened.
#[derive(Debug)]
struct QueuedDocument {
    state: u64,
    /// When the pause ends, since the memory began.
    ends: u64,
    /// Zero as long as its command isn't confirmed.
    pause: u32,
    /// The last sweep in which it still wanted a command.
    sweep: u32,
    /// It was queued for an entry without a date, which not every sweep reads.
    undated: bool,
}

/// The memory's answer for a document that needs a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Queue it.
    Queue,
    /// It was queued lately in this very state.
    Wait,
    /// There is no room to remember it: keep it until there is.
    Full,
}

impl RecentlyQueued {
    /// Remembers at most that many documents, each for `pause` at first.
    pub fn new(capacity: usize, pause: Duration) -> Self {
        Self::beginning(Instant::now(), capacity, pause)
    }

    /// The same, starting from an earliest time; older records do not exist.
    pub fn beginning(began: Instant, capacity: usize, pause: Duration) -> Self {
        Self { began, pause, capacity: capacity.max(1), len: 0, collections: HashMap::new(), tidy_after: 0 }
    }

    /// The sweep begins to read a collection.
    pub fn begin_sweep(&mut self, namespace: &Namespace) {
        let collection = self.collections.entry(hash(namespace)).or_default();
        collection.sweep = collection.sweep.wrapping_add(1);
    }

    /// The sweep asks this for each document that needs a command.
    pub fn admit(&mut self, document: &DocumentRef, head: &Head, now: Instant) -> Admission {
        let now = self.since_began(now);
        let (name, key, state) = (hash(&document.namespace), hash(&document.map_key()), hash(head));

        let collection = self.collections.entry(name).or_default();
        let sweep = collection.sweep;
        if let Some(known) = collection.documents.get_mut(&key) {
            known.sweep = sweep;
            let waits = known.state == state && known.is_confirmed() && !known.is_over(now);
            return if waits { Admission::Wait } else { Admission::Queue };
        }

        if !self.has_room(name, now) {
            return Admission::Full;
        }

        // Taken before the broker confirms: a page of many documents must not find the same room for each.
        let ends = now + u64::from(millis(self.pause));
        let known = QueuedDocument { state, ends, pause: 0, sweep, undated: head.is_undated() };
        self.insert(name, key, known);
        Admission::Queue
    }

    /// Whether a document was queued in this very state.
    pub fn knows(&self, document: &DocumentRef, head: &Head) -> bool {
        match self.known(hash(&document.namespace), hash(&document.map_key())) {
            Some(known) => known.state == hash(head) && known.is_confirmed(),
            None => false,
        }
    }

    /// The broker has confirmed a command for a document.
    pub fn note(&mut self, document: &DocumentRef, head: &Head, now: Instant) {
        let now = self.since_began(now);
        let (name, key, state) = (hash(&document.namespace), hash(&document.map_key()), hash(head));
        let first = millis(self.pause);

        if head.is_undated() {
            let undated = &mut self.collections.entry(name).or_default().undated;
            undated.waiting = true;
            undated.noted += 1;
        }

        let pause = match self.known(name, key) {
            Some(known) if known.state != state || !known.is_confirmed() => first,
            // The stream found it before the pause was over, which doesn't mean that it is stuck.
            Some(known) if !known.is_over(now) => known.pause,
            Some(known) => known.pause.saturating_mul(2).min(millis(LONGEST.max(self.pause))),
            // The stream queues every document that it finds, remembered or not, because it reads a change
            // once.
            None if self.len >= self.capacity => return,
            None => first,
        };
        self.remember(name, key, head, pause, now);
    }

    /// No command can be made for a document: it isn't retried until its outbox changes, or for an hour.
    pub fn note_unsendable(&mut self, document: &DocumentRef, head: &Head, now: Instant) {
        let now = self.since_began(now);
        let (name, key) = (hash(&document.namespace), hash(&document.map_key()));
        if self.known(name, key).is_none() && self.len >= self.capacity {
            return;
        }
        self.remember(name, key, head, millis(UNSENDABLE), now);
    }

    /// The sweep has read a collection to its end. Documents that no longer need a command are forgotten,
    /// once their pause is over or room is short.
    pub fn end_sweep(&mut self, namespace: &Namespace, read: SweptEntries, now: Instant) {
        let now = self.since_began(now);
        let is_short = self.len >= self.capacity / 2;
        let Some(collection) = self.collections.get_mut(&hash(namespace)) else {
            return;
        };

        let before = collection.documents.len();
        let sweep = collection.sweep;
        collection.documents.retain(|_, known| {
            let unread = known.undated && read == SweptEntries::Dated;
            known.sweep == sweep || unread || !(is_short || known.is_over(now))
        });
        self.len -= before - collection.documents.len();
    }

    /// Whether and how often documents of a collection were queued for entries without a date, since none was
    /// found.
    pub fn undated(&self, namespace: &Namespace) -> Option<u64> {
        let undated = self.collections.get(&hash(namespace))?.undated;
        undated.waiting.then_some(undated.noted)
    }

    /// The sweep found no entry without a date, unless one was queued since `noted`.
    pub fn none_undated(&mut self, namespace: &Namespace, noted: u64) {
        if let Some(collection) = self.collections.get_mut(&hash(namespace)) {
            collection.undated.waiting &= collection.undated.noted != noted;
        }
    }

    /// Forgets everything of collections that are gone.
    pub fn keep_only(&mut self, namespaces: &[Namespace]) {
        let there: HashSet<u64> = namespaces.iter().map(hash).collect();
        self.collections.retain(|collection, _| there.contains(collection));
        self.count();
    }

    fn known(&self, name: u64, key: u64) -> Option<&QueuedDocument> {
        self.collections.get(&name)?.documents.get(&key)
    }

    fn remember(&mut self, name: u64, key: u64, head: &Head, pause: u32, now: u64) {
        let sweep = self.collections.get(&name).map_or(0, |collection| collection.sweep);
        let ends = now + u64::from(pause);
        let known = QueuedDocument { state: hash(head), ends, pause, sweep, undated: head.is_undated() };
        self.insert(name, key, known);
    }

    fn insert(&mut self, name: u64, key: u64, known: QueuedDocument) {
        let collection = self.collections.entry(name).or_default();
        if collection.documents.insert(key, known).is_none() {
            self.len += 1;
        }
    }

    /// Counts the documents of all collections.
    fn count(&mut self) {
        self.len = self.collections.values().map(|collection| collection.documents.len()).sum();
    }

    /// Makes room if necessary; returns whether one more document of a collection can be remembered.
    fn has_room(&mut self, name: u64, now: u64) -> bool {
        if self.len >= self.capacity && now >= self.tidy_after {
            self.tidy_after = now + u64::from(millis(self.pause.min(TIDY_WITHIN) / 10));
            self.forget_those_over(now);
        }
        if self.len >= self.capacity {
            self.take_from_the_largest(name);
        }
        self.len < self.capacity
    }

    fn forget_those_over(&mut self, now: u64) {
        for collection in self.collections.values_mut() {
            collection.documents.retain(|_, known| !known.is_over(now));
        }
        self.count();
    }

    /// Makes the largest collection forget some documents, if another below its share needs room.
    fn take_from_the_largest(&mut self, asking: u64) {
        let mut own = 0;
        let mut filled = 0;
        for (name, collection) in &self.collections {
            if *name == asking {
                own = collection.documents.len();
            }
            if *name == asking || !collection.documents.is_empty() {
                filled += 1;
            }
        }
        let share = self.capacity / filled.max(1);
        if own >= share {
            return;
        }

        let Some(largest) = self.collections.values_mut().max_by_key(|collection| collection.documents.len())
        else {
            return;
        };
        let mut left = largest.documents.len().saturating_sub(share).min(FORGOTTEN_AT_ONCE);
        self.len -= left;
        // In no order: which of them are forgotten doesn't matter.
        largest.documents.retain(|_, _| {
            let keep = left == 0;
            left = left.saturating_sub(1);
            keep
        });
    }

    /// In milliseconds.
    fn since_began(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// How much of a collection the sweep has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweptEntries {
    /// Documents with an entry whose date has come.
    Dated,
    /// Those without a date, too.
    All,
}

impl QueuedDocument {
    fn is_over(&self, now: u64) -> bool {
        now >= self.ends
    }

    fn is_confirmed(&self) -> bool {
        self.pause > 0
    }
}

fn millis(pause: Duration) -> u32 {
    u32::try_from(pause.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use document_outbox::{DeliveryOrder, internal::read_outbox};
    use mongodb::bson::{Bson, DateTime, Uuid, doc};

    use super::*;
    use crate::judge::verdict::{Moment, judge};

    const PAUSE: Duration = Duration::from_secs(30);

    fn head_of(extra: mongodb::bson::Document) -> Head {
        let mut entry = doc! { "id": Uuid::new(), "type": "t" };
        entry.extend(extra);
        let outbox = Bson::Array(vec![entry.into()]);
        let moment = Moment::sweeping(DateTime::now(), Duration::ZERO);
        judge(read_outbox(Some(&outbox)), DeliveryOrder::Ordered, moment).work.unwrap()
    }

    fn head() -> Head {
        head_of(doc! { "available_at": DateTime::from_millis(0) })
    }

    fn document(id: i32) -> DocumentRef {
        DocumentRef::by_id(orders(), id)
    }

    fn orders() -> Namespace {
        Namespace::new("shop", "orders")
    }

    #[test]
    fn the_pause_of_an_unchanged_document_doubles() {
        let (mut queued, head, mut now) = (RecentlyQueued::new(10, PAUSE), head(), Instant::now());
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue);
        for factor in [1, 2, 4, 4] {
            queued.note(&document(1), &head, now);
            now += PAUSE * factor;
            let just_before = now.checked_sub(Duration::from_millis(1)).unwrap();
            assert_eq!(queued.admit(&document(1), &head, just_before), Admission::Wait, "{factor}");
            assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue, "{factor}");
        }
    }

    #[test]
    fn a_command_that_was_not_confirmed_is_admitted_again() {
        let (mut queued, head, now) = (RecentlyQueued::new(10, PAUSE), head(), Instant::now());
        for _ in 0..3 {
            assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue);
        }
    }

    #[test]
    fn queueing_by_the_stream_does_not_lengthen_a_pause() {
        let (mut queued, head, now) = (RecentlyQueued::new(10, PAUSE), head(), Instant::now());
        for _ in 0..5 {
            queued.note(&document(1), &head, now);
        }
        assert_eq!(queued.admit(&document(1), &head, now + PAUSE), Admission::Queue);
    }

    #[test]
    fn another_head_starts_from_the_first_pause() {
        let (mut queued, now) = (RecentlyQueued::new(10, PAUSE), Instant::now());
        queued.note(&document(1), &head(), now);
        let other = head();
        assert_eq!(queued.admit(&document(1), &other, now), Admission::Queue);
        queued.note(&document(1), &other, now);
        assert_eq!(queued.admit(&document(1), &other, now + PAUSE), Admission::Queue);
    }

    #[test]
    fn an_unsendable_document_waits_for_an_hour_or_change() {
        let (mut queued, head, now) = (RecentlyQueued::new(10, PAUSE), head(), Instant::now());
        queued.note_unsendable(&document(1), &head, now);
        assert_eq!(queued.admit(&document(1), &head, now + LONGEST * 2), Admission::Wait);
        assert_eq!(queued.admit(&document(1), &self::head(), now), Admission::Queue);
        assert_eq!(queued.admit(&document(1), &head, now + UNSENDABLE), Admission::Queue);
    }

    /// One page of documents takes only the available room; pauses that end make room for the others.
    #[test]
    fn a_full_memory_admits_no_more_until_pauses_end() {
        let (mut queued, head, now) = (RecentlyQueued::new(3, PAUSE), head(), Instant::now());
        let mut admitted = Vec::new();
        for id in 1..=5 {
            admitted.push(queued.admit(&document(id), &head, now));
        }
        assert_eq!(&admitted[..3], [Admission::Queue; 3]);
        assert_eq!(&admitted[3..], [Admission::Full; 2]);
        for id in 1..=3 {
            queued.note(&document(id), &head, now);
        }
        let later = now + PAUSE;
        assert_eq!(queued.admit(&document(4), &head, later), Admission::Queue);
        assert_eq!(queued.admit(&document(5), &head, later), Admission::Queue);
    }

    #[test]
    fn a_small_collection_keeps_room_despite_a_large_backlog() {
        let (mut queued, head, now) = (RecentlyQueued::new(10, PAUSE), head(), Instant::now());
        for id in 0..20 {
            queued.note(&document(id), &head, now);
        }
        let stock = |id: i32| DocumentRef::by_id(Namespace::new("shop", "stock"), id);
        let mut admitted = Vec::new();
        for id in 0..7 {
            admitted.push(queued.admit(&stock(id), &head, now));
        }
        let room = admitted.iter().filter(|admission| **admission == Admission::Queue).count();
        assert_eq!(room, 5, "its share of two: {admitted:?}");
        assert!(queued.len <= 10);
        assert_eq!(queued.admit(&document(100), &head, now), Admission::Full, "the large one has its share");
    }

    #[test]
    fn done_documents_are_forgotten_when_room_is_short() {
        let (mut queued, head, now) = (RecentlyQueued::new(2, PAUSE), head(), Instant::now());
        queued.begin_sweep(&orders());
        queued.note(&document(1), &head, now);
        queued.note(&document(2), &head, now);
        queued.begin_sweep(&orders());
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Wait);
        queued.end_sweep(&orders(), SweptEntries::Dated, now);
        assert_eq!(queued.admit(&document(3), &head, now), Admission::Queue, "2 was delivered");
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Wait, "1 is remembered");
    }

    #[test]
    fn undated_documents_survive_a_sweep_that_skips_them() {
        let (mut queued, head, now) = (RecentlyQueued::new(2, PAUSE), head_of(doc! {}), Instant::now());
        queued.note(&document(1), &head, now);
        queued.note(&document(2), &head, now);
        for (read, expected) in
            [(SweptEntries::Dated, Admission::Wait), (SweptEntries::All, Admission::Queue)]
        {
            queued.begin_sweep(&orders());
            queued.end_sweep(&orders(), read, now);
            assert_eq!(queued.admit(&document(1), &head, now), expected, "{read:?}");
        }
    }

    #[test]
    fn a_collection_has_undated_documents_until_none_is_found() {
        let (mut queued, now) = (RecentlyQueued::new(1, PAUSE), Instant::now());
        queued.note(&document(1), &head(), now);
        assert_eq!(queued.undated(&orders()), None);
        // More than can be remembered one by one.
        queued.note(&document(2), &head_of(doc! {}), now);
        let noted = queued.undated(&orders()).unwrap();
        queued.note(&document(3), &head_of(doc! {}), now);
        queued.none_undated(&orders(), noted);
        let noted = queued.undated(&orders()).expect("one was queued meanwhile");
        queued.none_undated(&orders(), noted);
        assert_eq!(queued.undated(&orders()), None);
    }

    #[test]
    fn collections_that_are_gone_are_forgotten() {
        let (mut queued, head, now) = (RecentlyQueued::new(10, PAUSE), head(), Instant::now());
        queued.note(&document(1), &head, now);
        queued.keep_only(&[Namespace::new("shop", "stock")]);
        assert_eq!(queued.len, 0);
        assert_eq!(queued.admit(&document(1), &head, now), Admission::Queue);
    }
}

//! Remembers a bounded number of recently queued documents, so that a stuck document doesn't get a command
//! in every round.
//!
//! If a document's outbox is still in the state in which the document was queued, the document is queued
//! again only after a pause, and the pause doubles each time the document is queued again. If the outbox has
//! changed (another head, another claim, another failure), the document counts as new. Forgetting a document
//! only costs a duplicate command, so documents may be forgotten to bound the memory.
//!
//! # What bounds the queue of commands
//! The sweep queues only documents that it can remember. If there is no room to remember more, the sweep
//! waits until pauses end, which takes at most two minutes. Unconsumed commands expire in the broker. So
//! at any time the queue holds only the commands from one expiry period, for each of at most
//! [`Settings::queued_capacity`](crate::Settings::queued_capacity) documents, plus the commands for the
//! documents that the change stream has shown in that period.
//!
//! # When the memory is full
//! Documents whose pause is over are forgotten. If that makes no room, a collection below its share takes
//! room from the largest collection, so that the backlog of one collection doesn't block another collection.
//! All other documents wait: the sweep keeps its place and continues there, so every document gets its turn.
//!
//! # Entries without a date
//! A document that was queued for an entry without a date isn't among the documents that the sweep reads in
//! every round. So for each collection, this module also records whether any such document was queued since
//! the sweep last found no entry without a date.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use document_outbox::DocumentRef;
use mongodb::Namespace;

use crate::{hash::hash, judge::verdict::Head};

/// The maximum length of a pause.
const LONGEST: Duration = Duration::from_mins(2);
/// The pause of a document for which no command can be made, unless its outbox changes.
const UNSENDABLE: Duration = Duration::from_hours(1);
/// The number of documents of the largest collection that are forgotten at a time, to make room for a
/// smaller collection.
const FORGOTTEN_AT_ONCE: usize = 100;
/// While there is no room, the search for documents to forget is repeated at intervals of a tenth of the
/// pause, or of a tenth of this time if the pause is longer.
const TIDY_WITHIN: Duration = Duration::from_secs(10);

/// Remembers recently queued documents; see the module's documentation.
#[derive(Debug)]
pub struct RecentlyQueued {
    began: Instant,
    pause: Duration,
    capacity: usize,
    /// The number of remembered documents in all collections.
    len: usize,
    /// The collections; the key is a hash of the collection's name. A collision only costs a duplicate
    /// command.
    collections: HashMap<u64, QueuedCollection>,
    /// Before this time, expired documents are not searched for again, because the search reads every
    /// document.
    tidy_after: u64,
}

/// The remembered documents of one collection.
#[derive(Debug, Default)]
struct QueuedCollection {
    documents: HashMap<u64, QueuedDocument>,
    /// The number of times that the sweep has begun to read the collection. After the largest
    /// number it begins at zero again.
    sweep: u32,
    undated: Undated,
}

/// Whether documents were queued for an entry without a date and may still need delivery.
#[derive(Debug, Default, Clone, Copy)]
struct Undated {
    waiting: bool,
    /// The number of documents that were ever queued for an entry without a date.
    noted: u64,
}

/// One remembered document. The fields are small because very many documents are remembered: times are in
/// milliseconds, and the outbox's state is only a hash.
#[derive(Debug)]
struct QueuedDocument {
    state: u64,
    /// The time when the pause ends, counted from the creation of [`RecentlyQueued`].
    ends: u64,
    /// The pause; zero while the command isn't confirmed.
    pause: u32,
    /// The last sweep in which the document still needed a command.
    sweep: u32,
    /// Whether the document was queued for an entry without a date, which not every sweep reads.
    undated: bool,
}

/// The decision about a document that needs a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Queue the document.
    Queue,
    /// Don't queue the document: it was recently queued, and its outbox is still in the same state.
    Wait,
    /// Keep the document until there is room to remember it.
    Full,
}

impl RecentlyQueued {
    /// Remembers at most `capacity` documents, each for `pause` at first.
    pub fn new(capacity: usize, pause: Duration) -> Self {
        Self::beginning(Instant::now(), capacity, pause)
    }

    /// Like [`new`](Self::new), but with `began` as the time from which the ends of pauses are
    /// counted.
    pub fn beginning(began: Instant, capacity: usize, pause: Duration) -> Self {
        Self { began, pause, capacity: capacity.max(1), len: 0, collections: HashMap::new(), tidy_after: 0 }
    }

    /// Records that the sweep begins to read a collection.
    pub fn begin_sweep(&mut self, namespace: &Namespace) {
        let collection = self.collections.entry(hash(namespace)).or_default();
        collection.sweep = collection.sweep.wrapping_add(1);
    }

    /// Decides for a document that needs a command whether the sweep may queue it now.
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

        // The room is taken before the broker confirms, so that no two documents of one page can take the
        // same place in the memory.
        let ends = now + u64::from(millis(self.pause));
        let known = QueuedDocument { state, ends, pause: 0, sweep, undated: head.is_undated() };
        self.insert(name, key, known);
        Admission::Queue
    }

    /// Whether the document was already queued in the state `head`.
    pub fn knows(&self, document: &DocumentRef, head: &Head) -> bool {
        match self.known(hash(&document.namespace), hash(&document.map_key())) {
            Some(known) => known.state == hash(head) && known.is_confirmed(),
            None => false,
        }
    }

    /// Records that the broker has confirmed a command for a document.
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
            // The stream found the document before the pause was over, which doesn't mean that the
            // document is stuck, so the pause stays as long as it was.
            Some(known) if !known.is_over(now) => known.pause,
            Some(known) => known.pause.saturating_mul(2).min(millis(LONGEST.max(self.pause))),
            // The stream queues every document that it finds, whether remembered or not, because it reads
            // each change only once.
            None if self.len >= self.capacity => return,
            None => first,
        };
        self.remember(name, key, head, pause, now);
    }

    /// Records that no command can be made for a document: the document isn't retried for an hour, unless
    /// its outbox changes.
    pub fn note_unsendable(&mut self, document: &DocumentRef, head: &Head, now: Instant) {
        let now = self.since_began(now);
        let (name, key) = (hash(&document.namespace), hash(&document.map_key()));
        if self.known(name, key).is_none() && self.len >= self.capacity {
            return;
        }
        self.remember(name, key, head, millis(UNSENDABLE), now);
    }

    /// Records that the sweep has read a collection to its end. Forgets documents that no longer need a
    /// command, once their pause is over or room is short.
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

    /// The number of documents of a collection that were queued for entries without a date, if any may
    /// still need delivery.
    pub fn undated(&self, namespace: &Namespace) -> Option<u64> {
        let undated = self.collections.get(&hash(namespace))?.undated;
        undated.waiting.then_some(undated.noted)
    }

    /// Records that the sweep found no entry without a date, unless another document was queued for
    /// such an entry since [`undated`](Self::undated) returned `noted`.
    pub fn none_undated(&mut self, namespace: &Namespace, noted: u64) {
        if let Some(collection) = self.collections.get_mut(&hash(namespace)) {
            collection.undated.waiting &= collection.undated.noted != noted;
        }
    }

    /// Forgets all documents of collections that no longer exist.
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

    /// Recounts the documents of all collections.
    fn count(&mut self) {
        self.len = self.collections.values().map(|collection| collection.documents.len()).sum();
    }

    /// Makes room if necessary, and returns whether one more document of a collection can be remembered.
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

    /// Forgets some documents of the largest collection, if another collection below its share needs room.
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
        // It doesn't matter which documents are forgotten, so the order of the map is good enough.
        largest.documents.retain(|_, _| {
            let keep = left == 0;
            left = left.saturating_sub(1);
            keep
        });
    }

    /// The time since the creation of this value, in milliseconds.
    fn since_began(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Which entries of a collection the sweep has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweptEntries {
    /// Documents with an entry whose date has passed.
    Dated,
    /// Documents with an entry whose date has passed, and documents with an entry that has no date.
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

    /// The documents of one page take only the available room. When pauses end, there is room for the
    /// other documents.
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
        // There is no room to remember this document. Only the fact that a document was queued is
        // remembered.
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

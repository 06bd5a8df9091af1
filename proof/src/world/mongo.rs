//! A replica set: the data of its primary, and the data of the majority.
//!
//! The primary executes a write at once. If the scenario is lagging, the majority receives the write only in a later step,
//! otherwise at once. If another primary is elected before that later step, the write is lost, because the new primary begins
//! with the data of the majority.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    document::{Document, EntryId, Stored},
    time::Tick,
};
use crate::name::Name;

/// The data of one member, or of the majority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Data {
    pub documents: Vec<Document>,
    /// The changes that the rescuer's change stream shows, in their order.
    pub changes: Vec<Change>,
    /// The retryable writes that were executed, each by its session and its number.
    pub executed: BTreeSet<(Name, u8)>,
}

/// A change that a change stream shows, because the change may have made a message deliverable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// The time of the change in the oplog. The primary assigns it. A later change has a higher time, also after a failover.
    pub time: u8,
    pub document: usize,
    pub at: Tick,
    /// The message that this change saved, if any.
    pub sent: Option<EntryId>,
}

/// How durable the last write of an actor is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The majority has the write, or there was no write.
    #[default]
    Durable,
    /// Only the primary has the write.
    Pending,
    /// Another primary was elected, and the new primary doesn't have the write.
    RolledBack,
}

/// A replica set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mongo {
    pub primary: Arc<Data>,
    pub majority: Arc<Data>,
    /// How durable the last write of each actor is; an actor's name is its index.
    last_write: Vec<Durability>,
    is_lagging: bool,
    /// The time of the latest change of any primary.
    pub time: u8,
}

impl Change {
    /// Creates a change with a message. The primary assigns the time later.
    pub fn saved(document: usize, at: Tick, sent: EntryId) -> Self {
        Self { time: 0, document, at, sent: Some(sent) }
    }

    /// Creates a change without a message. The primary assigns the time later.
    pub fn other(document: usize, at: Tick) -> Self {
        Self { time: 0, document, at, sent: None }
    }
}

impl Data {
    pub fn entries(&self) -> impl Iterator<Item = &Stored> {
        self.documents.iter().flat_map(|document| &document.outbox)
    }

    /// Returns the messages that were saved, each with the number of its document.
    pub fn sent(&self) -> impl Iterator<Item = (usize, EntryId)> {
        self.changes.iter().filter_map(|change| Some((change.document, change.sent?)))
    }

    /// Whether this data contains a save with this message.
    pub fn has_sent(&self, id: EntryId) -> bool {
        self.sent().any(|(_, sent)| sent == id)
    }

    /// Returns the entries of a document that have one of these ids and this claim.
    pub fn claimed(&mut self, document: usize, ids: &[EntryId], claim: (Name, u8)) -> Vec<&mut Stored> {
        let outbox = &mut self.documents[document].outbox;
        outbox.iter_mut().filter(|stored| ids.contains(&stored.id) && stored.claim == Some(claim)).collect()
    }
}

impl Mongo {
    pub fn new(documents: usize, actors: usize, is_lagging: bool) -> Self {
        let data = Arc::new(Data { documents: vec![Document::default(); documents], ..Data::default() });
        Self {
            primary: data.clone(),
            majority: data,
            last_write: vec![Durability::Durable; actors],
            is_lagging,
            time: 0,
        }
    }

    /// Executes a write of this actor on the primary, and tracks how durable it is. The write may change nothing.
    pub fn write<T>(&mut self, by: Name, write: impl FnOnce(&mut Data) -> T) -> T {
        let written = self.also(write);
        if self.is_lagging {
            self.last_write[by] = Durability::Pending;
        }
        written
    }

    /// Executes a write on the primary without tracking its durability, because no actor waits for the write.
    pub fn also<T>(&mut self, write: impl FnOnce(&mut Data) -> T) -> T {
        let primary = Arc::make_mut(&mut self.primary);
        let written = write(primary);
        for change in primary.changes.iter_mut().filter(|change| change.time == 0) {
            self.time += 1;
            change.time = self.time;
        }
        if !self.is_lagging {
            self.majority = self.primary.clone();
        }
        written
    }

    /// Returns how durable the last write of this actor is.
    pub fn last_write(&self, by: Name) -> Durability {
        self.last_write[by]
    }

    /// Notes that this actor no longer waits for its last write.
    pub fn forget(&mut self, by: Name) {
        self.last_write[by] = Durability::Durable;
    }

    pub fn is_behind(&self) -> bool {
        self.primary != self.majority || self.last_write.contains(&Durability::Pending)
    }

    /// Copies all data of the primary to the majority.
    pub fn replicate(&mut self) {
        self.majority = self.primary.clone();
        for last in &mut self.last_write {
            if *last == Durability::Pending {
                *last = Durability::Durable;
            }
        }
    }

    /// Elects another primary. Returns false if this loses no write.
    pub fn fail_over(&mut self) -> bool {
        let loses = self.is_behind();
        self.primary = self.majority.clone();
        for last in &mut self.last_write {
            if *last == Durability::Pending {
                *last = Durability::RolledBack;
            }
        }
        loses
    }
}

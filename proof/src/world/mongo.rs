//! A replica set: the data of its primary, and the data of the majority.
//!
//! The primary executes a write at once. The majority has it one step later, or, if another primary is elected before, never:
//! the new primary begins from what the majority has. A write of a majority that lags further is one that takes its step later.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    document::{Document, EntryId, Stored},
    time::Tick,
};
use crate::name::Name;

/// What a member has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Data {
    pub documents: Vec<Document>,
    /// Every change that left an outbox filled and its entries without a new date, in order, as the rescuer's stream shows them.
    pub changes: Vec<Change>,
    /// The retryable writes that were executed, by their session and number.
    pub executed: BTreeSet<(Name, u8)>,
}

/// A change that a change stream shows, because it may have made something deliverable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// Its time in the oplog: later ones have a higher one, whichever node is primary. Given by the primary.
    pub time: u8,
    pub document: usize,
    pub at: Tick,
    /// The message that was saved by it.
    pub sent: Option<EntryId>,
}

/// What is known of an actor's last write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// There is none, or the majority has it.
    #[default]
    Durable,
    /// The primary has it.
    Pending,
    /// Another primary was elected, which doesn't have it.
    RolledBack,
}

/// A replica set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mongo {
    pub primary: Arc<Data>,
    pub majority: Arc<Data>,
    /// By actor.
    last_write: Vec<Durability>,
    is_lagging: bool,
    /// The time of the latest change of any primary.
    pub time: u8,
}

impl Change {
    /// A change that the primary is to give its time.
    pub fn saved(document: usize, at: Tick, sent: EntryId) -> Self {
        Self { time: 0, document, at, sent: Some(sent) }
    }

    /// The same, of a change without a message.
    pub fn other(document: usize, at: Tick) -> Self {
        Self { time: 0, document, at, sent: None }
    }
}

impl Data {
    pub fn entries(&self) -> impl Iterator<Item = &Stored> {
        self.documents.iter().flat_map(|document| &document.outbox)
    }

    /// The messages that were saved, each with its document.
    pub fn sent(&self) -> impl Iterator<Item = (usize, EntryId)> {
        self.changes.iter().filter_map(|change| Some((change.document, change.sent?)))
    }

    /// Whether a save with this message is part of it.
    pub fn has_sent(&self, id: EntryId) -> bool {
        self.sent().any(|(_, sent)| sent == id)
    }

    /// The entries of a document with these ids and this claim.
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

    /// The primary executes a write of this actor, which may find nothing to change.
    pub fn write<T>(&mut self, by: Name, write: impl FnOnce(&mut Data) -> T) -> T {
        let written = self.also(write);
        if self.is_lagging {
            self.last_write[by] = Durability::Pending;
        }
        written
    }

    /// The same, for a write that no one waits for.
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

    /// What became of this actor's last write.
    pub fn last_write(&self, by: Name) -> Durability {
        self.last_write[by]
    }

    /// A process that waited for its last write no longer does.
    pub fn forget(&mut self, by: Name) {
        self.last_write[by] = Durability::Durable;
    }

    pub fn is_behind(&self) -> bool {
        self.primary != self.majority || self.last_write.contains(&Durability::Pending)
    }

    /// The majority has all that the primary has.
    pub fn replicate(&mut self) {
        self.majority = self.primary.clone();
        for last in &mut self.last_write {
            if *last == Durability::Pending {
                *last = Durability::Durable;
            }
        }
    }

    /// Another primary is elected: false if this loses no write.
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

//! A document: the changes of an aggregate, and its outbox.

use std::collections::BTreeMap;

use document_outbox::internal::{Dead, Entry, Hold, Slot, hold};
use mongodb::bson::{Bson, DateTime, Uuid};

use super::time::{Tick, at};
use crate::name::Name;

/// One change that somebody wants, with one message.
pub type Intent = u8;

/// The name of a message: that of its intent, and how often that was tried before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub intent: Intent,
    pub again: u8,
}

/// The mark of one save.
pub type Etag = (Name, u8);

/// The value of one claim.
pub type Token = (Name, u8);

/// One entry of an outbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stored {
    pub id: EntryId,
    pub created: Option<Tick>,
    pub available: Option<Tick>,
    pub claim: Option<Token>,
    pub attempts: u8,
    pub claims: u8,
    /// Why it is dead.
    pub dead: Option<&'static str>,
}

/// A document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Document {
    /// None before the first save.
    pub etag: Option<Etag>,
    /// The intents that took effect, as often as they did.
    pub effects: Vec<Intent>,
    pub outbox: Vec<Stored>,
    /// The messages that it remembers as received.
    pub received: Vec<EntryId>,
}

impl Stored {
    /// An entry as a save of the library writes it, due at once.
    pub fn new(id: EntryId, now: Tick) -> Self {
        let (created, available) = (Some(now), Some(now));
        Self { id, created, available, claim: None, attempts: 0, claims: 0, dead: None }
    }

    /// The entry as the code reads it.
    pub fn entry(&self) -> Entry {
        Entry {
            id: uuid_of(self.id),
            message_type: "m".into(),
            payload: Bson::Null,
            headers: BTreeMap::new(),
            via: None,
            created_at: self.created.map(at),
            available_at: self.available.map(at),
            claimed_by: self.claim.map(|(name, number)| format!("{name}/{number}")),
            attempts: self.attempts.into(),
            claims: self.claims.into(),
            last_error: None,
            delivered_to: Vec::new(),
            dead: self.dead.map(|reason| Dead { at: DateTime::from_millis(0), reason: reason.into() }),
        }
    }

    /// Whether it waits for its time.
    pub fn is_scheduled(&self, now: Tick) -> bool {
        matches!(hold(&self.entry(), at(now)), Some(Hold::Scheduled(_)))
    }
}

/// The name of a message as a receiver has it.
pub fn uuid(id: EntryId) -> uuid::Uuid {
    uuid::Uuid::from_bytes(uuid_of(id).bytes())
}

/// Neither of version 7, which has a time, nor equal to another.
fn uuid_of(id: EntryId) -> Uuid {
    let mut bytes = [0x44; 16];
    (bytes[0], bytes[15]) = (id.again, id.intent);
    Uuid::from_bytes(bytes)
}

/// An outbox as the code reads it.
pub fn slots(outbox: &[Stored]) -> Vec<Slot> {
    outbox.iter().map(|stored| Slot::Entry(Box::new(stored.entry()))).collect()
}

/// Whether the sweep's query by the index finds a document: one with a living entry whose date has come.
pub fn due_now(outbox: &[Stored], now: Tick) -> bool {
    let is_due = |stored: &Stored| stored.dead.is_none() && stored.available.is_some_and(|at| at <= now);
    outbox.iter().any(is_due)
}

/// Whether a sweep that reads entries without a date finds a document by one.
pub fn undated(outbox: &[Stored]) -> bool {
    outbox.iter().any(|stored| stored.dead.is_none() && stored.available.is_none())
}

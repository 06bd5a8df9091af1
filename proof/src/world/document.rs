//! A document: the changes of an aggregate, and its outbox.

use std::collections::BTreeMap;

use document_outbox::internal::{Dead, Entry, Hold, Slot, hold};
use mongodb::bson::{Bson, DateTime, Uuid};

use super::time::{Tick, at};
use crate::name::Name;

/// The number of a change that an actor wants to make. Each change has one message.
pub type Intent = u8;

/// The id of a message: the number of its intent, and the number of earlier tries of this intent by an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub intent: Intent,
    pub again: u8,
}

/// The etag that one save writes: the saver, and a number.
pub type Etag = (Name, u8);

/// The value that one claim writes: the claimant, and a number.
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
    /// The reason for which the entry is dead, or `None` while it is alive.
    pub dead: Option<&'static str>,
}

/// A document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Document {
    /// The etag of the last save, or `None` before the first save.
    pub etag: Option<Etag>,
    /// The intents that took effect. An intent that took effect twice is listed twice.
    pub effects: Vec<Intent>,
    pub outbox: Vec<Stored>,
    /// The messages that the document remembers as received.
    pub received: Vec<EntryId>,
}

impl Stored {
    /// Creates an entry that is due at once, as the library writes it in a save.
    pub fn new(id: EntryId, now: Tick) -> Self {
        let (created, available) = (Some(now), Some(now));
        Self { id, created, available, claim: None, attempts: 0, claims: 0, dead: None }
    }

    /// Converts the entry to the library's type.
    pub fn entry(&self) -> Entry {
        Entry {
            id: uuid_of(self.id),
            message_type: "m".into(),
            payload: Bson::Null,
            headers: BTreeMap::new(),
            via: None,
            key: None,
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

    /// Whether the entry is not due yet, because its message was scheduled for a later time.
    pub fn is_scheduled(&self, now: Tick) -> bool {
        matches!(hold(&self.entry(), at(now)), Some(Hold::Scheduled(_)))
    }
}

/// Returns the id of a message as a receiver gets it.
pub fn uuid(id: EntryId) -> uuid::Uuid {
    uuid::Uuid::from_bytes(uuid_of(id).bytes())
}

/// Returns an id that no other message has. The id is not a UUID of version 7, because a UUID of version 7 would contain a time.
fn uuid_of(id: EntryId) -> Uuid {
    let mut bytes = [0x44; 16];
    (bytes[0], bytes[15]) = (id.again, id.intent);
    Uuid::from_bytes(bytes)
}

/// Converts an outbox to the type that the library reads.
pub fn slots(outbox: &[Stored]) -> Vec<Slot> {
    outbox.iter().map(|stored| Slot::Entry(Box::new(stored.entry()))).collect()
}

/// Whether the sweep's query for due entries finds a document with this outbox. It does if a living entry is due.
pub fn due_now(outbox: &[Stored], now: Tick) -> bool {
    let is_due = |stored: &Stored| stored.dead.is_none() && stored.available.is_some_and(|at| at <= now);
    outbox.iter().any(is_due)
}

/// Whether the sweep's query for entries without a date finds a document with this outbox.
pub fn undated(outbox: &[Stored]) -> bool {
    outbox.iter().any(|stored| stored.dead.is_none() && stored.available.is_none())
}

//! What happens, as values: the one place from which logs, counts and tests learn of it.

use tokio::sync::broadcast;

use crate::stored::{document_ref::DocumentRef, entry::DeadReason};

/// How many events a slow subscriber may lag behind before it misses some.
const BACKLOG: usize = 4096;

/// A place where events are announced. Nobody has to listen; clones announce to the same listeners.
#[derive(Debug, Clone)]
pub struct Events<E> {
    sender: broadcast::Sender<E>,
}

impl<E: Clone> Default for Events<E> {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG) }
    }
}

impl<E: Clone> Events<E> {
    /// Announces an event to whoever listens now.
    pub fn emit(&self, event: E) {
        // The error only says that nobody listens.
        let _ = self.sender.send(event);
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<E> {
        self.sender.subscribe()
    }
}

/// What happened to a document's messages.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A message was delivered and confirmed.
    Delivered {
        /// Where it stood.
        document: DocumentRef,
        /// Which message.
        id: uuid::Uuid,
        /// Its type.
        message_type: String,
    },
    /// A delivery failed; it is tried again.
    Failed {
        /// Where it stands.
        document: DocumentRef,
        /// Which message.
        id: uuid::Uuid,
        /// Its type.
        message_type: String,
        /// Failed attempts so far.
        attempts: i64,
        /// What went wrong.
        error: String,
    },
    /// A message was given up; it stays in the document for an operator.
    Died {
        /// Where it stands.
        document: DocumentRef,
        /// Which message.
        id: uuid::Uuid,
        /// Its type.
        message_type: String,
        /// Why it was given up.
        reason: DeadReason,
        /// What the last failure said.
        error: String,
    },
    /// Claimed messages were given back, with no attempt counted.
    Released {
        /// Where they stand.
        document: DocumentRef,
        /// How many.
        count: usize,
        /// Why.
        reason: String,
    },
    /// A claim ran out, or was taken, while its holder still worked. One that comes to light only when what was delivered is
    /// cleared together with that of other documents is counted, and not announced: the server doesn't say which it was.
    ClaimLost {
        /// Where.
        document: DocumentRef,
    },
    /// Elements of an outbox are no entries; they are left alone.
    Unreadable {
        /// Where.
        document: DocumentRef,
        /// How many.
        count: usize,
        /// What is wrong with the first.
        reason: String,
    },
    /// Messages can't be served from here; they are left for whoever can.
    NotMine {
        /// Where.
        document: DocumentRef,
        /// How many.
        count: usize,
    },
    /// The inline dispatcher left a save's messages to the rescuer.
    Skipped {
        /// Where.
        document: DocumentRef,
        /// How many that are due.
        count: usize,
        /// Why.
        reason: Shed,
    },
    /// A command was sent so that a worker goes on.
    HandedOff {
        /// With what.
        document: DocumentRef,
    },
    /// The document is too large to be claimed in; it is delivered under a lease in the state database.
    Oversized {
        /// Which.
        document: DocumentRef,
    },
}

/// Why the inline dispatcher left messages to the rescuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum Shed {
    /// No seat was free.
    Full,
    /// There is no way to deliver now.
    Unavailable,
    /// It is shutting down.
    Stopped,
    /// No document of the name given holds them.
    NotFound,
}

impl Shed {
    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

//! Events, as values: the only source of logs, counts and tests.

use tokio::sync::broadcast;

use crate::stored::{document_ref::DocumentRef, entry::DeadReason};

/// How many events a slow subscriber may lag behind before it misses some.
const BACKLOG: usize = 4096;

/// Announces events. Listeners are optional; clones announce to the same listeners.
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
    /// Announces an event to the current listeners.
    pub fn emit(&self, event: E) {
        // The error only means that there is no listener.
        let _ = self.sender.send(event);
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<E> {
        self.sender.subscribe()
    }
}

/// An event of a document's messages.
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
    /// A delivery failed; it is retried.
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
    /// A message is dead; it stays in the document for an operator.
    Died {
        /// Where it stands.
        document: DocumentRef,
        /// Which message.
        id: uuid::Uuid,
        /// Its type.
        message_type: String,
        /// Why it is dead.
        reason: DeadReason,
        /// The error of the last failure.
        error: String,
    },
    /// Claimed messages were released, with no attempt counted.
    Released {
        /// Where they stand.
        document: DocumentRef,
        /// How many.
        count: usize,
        /// Why.
        reason: String,
    },
    /// A claim expired, or was taken, while its holder still worked. If that is only detected by a batched
    /// clear of several documents, it is counted but not announced, because the server doesn't report which
    /// claim it was.
    ClaimLost {
        /// Where.
        document: DocumentRef,
    },
    /// Elements of an outbox are not entries; they are left alone.
    Unreadable {
        /// Where.
        document: DocumentRef,
        /// How many.
        count: usize,
        /// What is wrong with the first.
        reason: String,
    },
    /// Messages can't be delivered from here; they are left to other deliverers.
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
    /// A command was sent so that a worker continues.
    HandedOff {
        /// With what.
        document: DocumentRef,
    },
    /// The document is too large for a claim; it is delivered under a lease in the state database.
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
    /// The destination is unavailable.
    Unavailable,
    /// It is shutting down.
    Stopped,
    /// The named document doesn't have them.
    NotFound,
}

impl Shed {
    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

//! Events about messages, for subscribers, metrics and tests.

use tokio::sync::broadcast;

use crate::stored::{document_ref::DocumentRef, entry::DeadReason};

/// Number of events that a slow subscriber may lag behind before it misses some.
const BACKLOG: usize = 4096;

/// Publishes events to subscribers, if there are any. Clones have the same subscribers.
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
    /// Publishes an event to the current subscribers.
    pub fn emit(&self, event: E) {
        // An error only means that there is no subscriber.
        let _ = self.sender.send(event);
    }

    /// Subscribes to the events that are published from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<E> {
        self.sender.subscribe()
    }
}

/// Something that happened to a document's messages.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A message was delivered and confirmed.
    Delivered {
        /// The document whose outbox contained the message.
        document: DocumentRef,
        /// The message's id.
        id: uuid::Uuid,
        /// The message's type.
        message_type: String,
    },
    /// A delivery failed and will be retried.
    Failed {
        /// The document whose outbox contains the message.
        document: DocumentRef,
        /// The message's id.
        id: uuid::Uuid,
        /// The message's type.
        message_type: String,
        /// Number of failed attempts so far.
        attempts: i64,
        /// The error.
        error: String,
    },
    /// A message died. It stays in the document for an operator.
    Died {
        /// The document whose outbox contains the message.
        document: DocumentRef,
        /// The message's id.
        id: uuid::Uuid,
        /// The message's type.
        message_type: String,
        /// Why the message is dead.
        reason: DeadReason,
        /// The error of the last failure.
        error: String,
    },
    /// Claimed messages were released without counting an attempt.
    Released {
        /// The document whose outbox contains the messages.
        document: DocumentRef,
        /// The number of released messages.
        count: usize,
        /// The reason.
        reason: String,
    },
    /// A claim expired or was taken over while its holder was still delivering. If only a batched clear of several
    /// documents detects the loss of the claim, the loss is counted. In this case no event is published, because the
    /// server doesn't report which claim was lost.
    ClaimLost {
        /// The document.
        document: DocumentRef,
    },
    /// An outbox has malformed elements, which were skipped.
    Unreadable {
        /// The document.
        document: DocumentRef,
        /// The number of malformed elements.
        count: usize,
        /// What is wrong with the first malformed element.
        reason: String,
    },
    /// This process can't deliver some messages, and leaves them to other deliverers.
    NotMine {
        /// The document.
        document: DocumentRef,
        /// The number of messages that this process can't deliver.
        count: usize,
    },
    /// The inline dispatcher left a save's messages to the rescuer.
    Skipped {
        /// The document.
        document: DocumentRef,
        /// The number of due messages.
        count: usize,
        /// The reason.
        reason: Shed,
    },
    /// A command was sent so that a worker continues the delivery.
    HandedOff {
        /// The document.
        document: DocumentRef,
    },
    /// The document is too large for a claim, so its messages are delivered under a lease in the state database.
    Oversized {
        /// The document.
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
    /// The dispatcher is shutting down.
    Stopped,
    /// No document with the given `_id` contains the messages.
    NotFound,
}

impl Shed {
    /// Returns the label value in metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

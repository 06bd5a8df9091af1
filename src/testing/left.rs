//! The messages that are left in the documents.

use std::fmt;

use mongodb::{
    Namespace,
    bson::{DateTime, Document},
};

use crate::{
    encoding::codec,
    stored::{
        deliverable::{Hold, hold},
        document_ref::DocumentRef,
        entry::{Entry, Slot, read_outbox_of},
    },
};

/// A message that is left in a document.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LeftMessage {
    /// The document whose outbox has the message.
    pub document: DocumentRef,
    /// The type of the message. Empty if the element is malformed.
    pub message_type: String,
    /// The name of the deliverer that the message is for. `None` means the broker.
    pub via: Option<String>,
    /// Number of failed attempts.
    pub attempts: i64,
    /// The error of the last failed attempt.
    pub last_error: Option<String>,
    /// Why the message is still there.
    pub state: MessageState,
}

/// Why a message is still in its document.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MessageState {
    /// The message can be delivered now, unless an earlier message of the document blocks it or no deliverer serves it.
    Due,
    /// The message was sent with a later due time.
    Scheduled(DateTime),
    /// The delivery failed and is retried at this time.
    Retrying(DateTime),
    /// The message is under a claim until this time.
    Claimed(DateTime),
    /// The message is dead, for this reason.
    Dead(String),
    /// The element is malformed, for this reason.
    Malformed(String),
}

impl LeftMessage {
    fn of(document: &DocumentRef, entry: &Entry, now: DateTime) -> Self {
        let state = match (&entry.dead, hold(entry, now)) {
            (Some(dead), _) => MessageState::Dead(dead.reason.clone()),
            (None, Some(Hold::Scheduled(at))) => MessageState::Scheduled(at),
            (None, Some(Hold::Retrying(at))) => MessageState::Retrying(at),
            (None, Some(Hold::Claimed(until))) => MessageState::Claimed(until),
            (None, Some(Hold::NotMine | Hold::Dead) | None) => MessageState::Due,
        };
        Self {
            document: document.clone(),
            message_type: entry.message_type.clone(),
            via: entry.via.clone(),
            attempts: entry.attempts,
            last_error: entry.last_error.clone(),
            state,
        }
    }

    fn malformed(document: &DocumentRef, reason: String) -> Self {
        Self {
            document: document.clone(),
            message_type: String::new(),
            via: None,
            attempts: 0,
            last_error: None,
            state: MessageState::Malformed(reason),
        }
    }
}

/// The messages of a document.
pub(super) fn left_in(namespace: &Namespace, document: &Document, now: DateTime) -> Vec<LeftMessage> {
    let Ok(raw) = codec::encode(document) else { return Vec::new() };
    let Some(document) = DocumentRef::of_stored(namespace.clone(), &raw) else { return Vec::new() };
    match read_outbox_of(&raw) {
        Err(reason) => vec![LeftMessage::malformed(&document, reason.to_string())],
        Ok(slots) => {
            let left = slots.iter().map(|slot| match slot {
                Slot::Entry(entry) => LeftMessage::of(&document, entry, now),
                Slot::Unreadable(unreadable) => LeftMessage::malformed(&document, unreadable.reason.clone()),
            });
            left.collect()
        }
    }
}

impl fmt::Display for LeftMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.document)?;
        if !matches!(self.state, MessageState::Malformed(_)) {
            write!(f, "`{}`", self.message_type)?;
            if let Some(via) = &self.via {
                write!(f, " via {via}")?;
            }
            f.write_str(" ")?;
        }
        write!(f, "{}", self.state)?;
        if let Some(error) = &self.last_error {
            write!(f, ", after {} failed attempts: {error}", self.attempts)?;
        }
        Ok(())
    }
}

impl fmt::Display for MessageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let until = |at: &DateTime| codec::rfc3339(*at).unwrap_or_else(|| at.to_string());
        match self {
            Self::Due => f.write_str("is due"),
            Self::Scheduled(at) => write!(f, "is scheduled for {}", until(at)),
            Self::Retrying(at) => write!(f, "is retried at {}", until(at)),
            Self::Claimed(at) => write!(f, "is claimed until {}", until(at)),
            Self::Dead(reason) => write!(f, "is dead ({reason})"),
            Self::Malformed(reason) => write!(f, "a malformed element: {reason}"),
        }
    }
}

//! Changes of mind: messages that an earlier save has stored are cancelled, rescheduled, or replaced by a later message.

use uuid::Uuid;

use crate::aggregate::due::Due;

/// A change to a message that an earlier save has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revision {
    /// The message with this id is removed.
    Cancel(Uuid),
    /// The message with this id becomes due at another time.
    Reschedule(Uuid, Due),
}

impl Revision {
    /// The id of the message.
    #[must_use]
    pub fn message(&self) -> Uuid {
        match self {
            Self::Cancel(id) | Self::Reschedule(id, _) => *id,
        }
    }
}

/// The outcome for a message that an earlier save had stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revised {
    /// The id of the message.
    pub message: Uuid,
    /// The outcome for this message.
    pub outcome: RevisionOutcome,
}

/// The outcome for a message that a save was to cancel, to reschedule or to replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum RevisionOutcome {
    /// The save has removed the message, and no process had claimed it. The message can still arrive, or have arrived, if
    /// an earlier publish of it failed or got no answer: because of an alarm of the broker, a lost connection, or a claim
    /// that ended before the confirm. It can also arrive if the document was near 16 MiB and its messages were delivered
    /// under a lease.
    Cancelled,
    /// The message is due at its new time.
    Rescheduled,
    /// The save has removed the message, because it sent a later message with the same type and key. The removed message
    /// can still arrive in the same cases as after [`Cancelled`](Self::Cancelled).
    Replaced,
    /// The message was not changed, because it is being delivered, or some of its handlers have already received it. It
    /// stays in the outbox until its delivery is complete.
    TooLate,
    /// The message was not changed, because it is dead. Only an operator can discard it or replay it.
    Dead,
    /// The outbox has no such message. It was delivered, or cancelled by an earlier save, or it was never stored in this
    /// document.
    NotThere,
    /// The outbox was not changed, because its element with this id is malformed.
    Unreadable,
}

impl RevisionOutcome {
    /// Returns the label value in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

//! The events of received messages, as values.

use uuid::Uuid;

use crate::receive::decide::DeadCause;

/// An event of a received message.
///
/// Every message that is taken ends with one of [`Applied`](Self::Applied), [`Repeated`](Self::Repeated), [`Delayed`](Self::Delayed),
/// [`Died`](Self::Died), [`Rejected`](Self::Rejected), [`Ignored`](Self::Ignored) and [`Returned`](Self::Returned).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceiverEvent {
    /// A message was taken from the queue.
    Taken(MessageName),
    /// Its effect is durable, and it was acknowledged.
    Applied(MessageName),
    /// Its aggregate had received it before; acknowledged.
    Repeated(MessageName),
    /// It failed, and is tried again in place.
    Retried {
        /// Which message.
        message: MessageName,
        /// Why.
        error: String,
    },
    /// It is in the delay queue; acknowledged.
    Delayed {
        /// Which message.
        message: MessageName,
        /// Why.
        error: String,
    },
    /// It is in the dead-letter queue; acknowledged.
    Died {
        /// Which message.
        message: MessageName,
        /// Why, in a word.
        cause: DeadCause,
        /// Why, in a sentence.
        error: String,
    },
    /// It was rejected, so that the broker dead-letters or drops it.
    Rejected(MessageName),
    /// Its type is unknown and it was acknowledged without an effect.
    Ignored(MessageName),
    /// It was not settled: the receiver stops, or the connection is gone. It is delivered again.
    Returned(MessageName),
    /// No messages are taken, because something that this one needs is unavailable.
    Unavailable {
        /// Which message.
        message: MessageName,
        /// Why.
        error: String,
    },
}

/// Which message is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageName {
    /// Its id, if it has one.
    pub id: Option<Uuid>,
    /// Its type.
    pub message_type: String,
    /// Its subject, if it has one.
    pub subject: Option<String>,
}

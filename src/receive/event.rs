//! Events of received messages, as values.

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
    /// The message's effect is durable, and the message was acknowledged.
    Applied(MessageName),
    /// The aggregate had received the message before. The message was acknowledged.
    Repeated(MessageName),
    /// The message failed. The receiver holds it and tries it again.
    Retried {
        /// The message that failed.
        message: MessageName,
        /// The reason for the failure.
        error: String,
    },
    /// The message was put into the delay queue and acknowledged.
    Delayed {
        /// The delayed message.
        message: MessageName,
        /// The reason for the delay.
        error: String,
    },
    /// The message was put into the dead-letter queue and acknowledged.
    Died {
        /// The dead message.
        message: MessageName,
        /// The kind of failure.
        cause: DeadCause,
        /// The failure as a sentence.
        error: String,
    },
    /// The message was rejected, so that the broker dead-letters or drops it.
    Rejected(MessageName),
    /// The message's type is unknown, and the message was acknowledged without an effect.
    Ignored(MessageName),
    /// The message was not settled, because the receiver stops or the connection is lost. The broker delivers the
    /// message again.
    Returned(MessageName),
    /// No messages are taken, because something that this message needs is unavailable.
    Unavailable {
        /// The message that cannot be handled now.
        message: MessageName,
        /// The reason.
        error: String,
    },
}

/// The names by which a message is identified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageName {
    /// The message's id, if it has one.
    pub id: Option<Uuid>,
    /// The message's type.
    pub message_type: String,
    /// The message's subject, if it has one.
    pub subject: Option<String>,
}

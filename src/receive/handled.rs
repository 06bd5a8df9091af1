//! The outcome of one call for a received message.

use crate::deliver::HandlerError;

/// The outcome of one call for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Handled {
    /// The message's effect is durable. If an aggregate received the message, the majority has the save.
    Applied(Option<InboxFigures>),
    /// The aggregate had received the message before.
    Repeated,
    Transient(String),
    Permanent(String),
    Undecodable(String),
    /// Something that the message needs is unavailable, so other messages would fail too.
    Unavailable(String),
}

/// An aggregate's inbox after it received a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InboxFigures {
    pub(super) remembered: usize,
    pub(super) forgotten: usize,
}

impl From<HandlerError> for Handled {
    fn from(error: HandlerError) -> Self {
        match error {
            HandlerError::Transient(reason) => Self::Transient(reason),
            HandlerError::Permanent(reason) => Self::Permanent(reason),
            HandlerError::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

impl Handled {
    /// The outcome of a function that has no inbox.
    pub(super) fn from_result(result: Result<(), HandlerError>) -> Self {
        match result {
            Ok(()) => Self::Applied(None),
            Err(error) => error.into(),
        }
    }

    /// The outcome for a delivery inside this process. A message that can't be decoded fails for good.
    pub(super) fn into_result(self) -> Result<(), HandlerError> {
        match self {
            Self::Applied(_) | Self::Repeated => Ok(()),
            Self::Transient(reason) => Err(HandlerError::Transient(reason)),
            Self::Permanent(reason) | Self::Undecodable(reason) => Err(HandlerError::Permanent(reason)),
            Self::Unavailable(reason) => Err(HandlerError::Unavailable(reason)),
        }
    }

    /// The name of the failure in traces. `None` unless the outcome is a failure.
    #[cfg(feature = "rabbitmq")]
    pub(super) fn error_type(&self) -> Option<&'static str> {
        match self {
            Self::Applied(_) | Self::Repeated => None,
            Self::Transient(_) => Some("transient"),
            Self::Permanent(_) => Some("permanent"),
            Self::Undecodable(_) => Some("undecodable"),
            Self::Unavailable(_) => Some("unavailable"),
        }
    }
}

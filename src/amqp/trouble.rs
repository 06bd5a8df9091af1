//! Classifies failures of RabbitMQ by their scope, which is one message, a channel, or the connection.

use std::fmt::{self, Display};

use lapin::{ErrorKind, protocol::AMQPErrorKind, types::ShortString};

/// Why there is no usable connection.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// The broker can't be reached. Waiting may help.
    Unreachable(String),
    /// The configuration is wrong. A person must fix it.
    Misconfigured(String),
}

impl Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) | Self::Misconfigured(reason) => f.write_str(reason),
        }
    }
}

/// Why a request to the broker has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// RabbitMQ closed the channel with this code, because of one request on it.
    Channel(u16),
    /// RabbitMQ closed the connection with this protocol code, perhaps because of one request on it.
    Connection(u16),
    /// The connection is lost or silent, and no request caused that.
    Lost,
}

impl Cause {
    pub(super) fn explains_more_than(self, other: Self) -> bool {
        match self {
            Self::Channel(_) => !matches!(other, Self::Channel(_)),
            Self::Connection(_) => other == Self::Lost,
            Self::Lost => false,
        }
    }

    pub(super) fn of(error: &lapin::Error) -> Self {
        let ErrorKind::ProtocolError(error) = error.kind() else {
            return Self::Lost;
        };
        let code = error.get_id();

        match error.kind() {
            AMQPErrorKind::Soft(_) => Self::Channel(code),
            // The broker uses the following codes for bad requests: frame, syntax, command, channel, unexpected frame,
            // not implemented, internal. The remaining codes (320, 402, 506, 530) concern the broker itself or the
            // whole connection.
            AMQPErrorKind::Hard(_) if matches!(code, 501..=505 | 540 | 541) => Self::Connection(code),
            AMQPErrorKind::Hard(_) => Self::Lost,
        }
    }
}

/// Returns the broker's reply code, if the broker refused the request.
pub(super) fn code_of(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Returns the broker's error text if there is one, otherwise the client's text.
pub(super) fn broker_said(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => format!("{} {}", error.get_id(), error.get_message()),
        _ => error.to_string(),
    }
}

/// Converts a name to an AMQP short string. The client would panic on a name over 255 bytes, so this function checks
/// the length.
pub(super) fn short(name: &str) -> Result<ShortString, Trouble> {
    ShortString::try_new(name).map_err(|_| {
        let start: String = name.chars().take(40).collect();
        Trouble::Misconfigured(format!(
            "the name that begins with {start:?} is longer than 255 bytes, the limit of AMQP"
        ))
    })
}

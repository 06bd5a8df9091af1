//! Named points in the work of a process, at which the process can be killed. A link detects these points by the frames that pass
//! through it.

use memchr::memmem::find;

use super::frames::Protocol;

/// Whether a process is killed before or after the frame of its point has passed through the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
}

/// A kind of frame that shows how far a process has come in its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// A frame that saves a document with messages, or that claims messages.
    SaveOrClaim,
    /// A frame that publishes a message.
    Publish,
    /// A frame with RabbitMQ's confirm of a message or a command.
    Confirm,
    /// A frame that removes delivered messages from their document.
    Clear,
    /// A frame that publishes a command.
    SendCommand,
    /// A frame that acknowledges a processed command.
    FinishCommand,
    /// A frame that writes the position of a stream or the lease of a stream.
    Position,
}

impl Point {
    /// The points that an application reaches.
    pub(crate) const OF_APPLICATIONS: [Self; 4] =
        [Self::SaveOrClaim, Self::Publish, Self::Confirm, Self::Clear];
    /// The points that a rescuer reaches.
    pub(crate) const OF_RESCUERS: [Self; 3] = [Self::SendCommand, Self::Confirm, Self::Position];
    /// The points that a dispatcher reaches.
    pub(crate) const OF_DISPATCHERS: [Self; 5] =
        [Self::SaveOrClaim, Self::Publish, Self::Confirm, Self::Clear, Self::FinishCommand];

    /// Whether a process that sends or receives this frame is at this point.
    pub(super) fn is_at(self, protocol: Protocol, to_server: bool, frame: &[u8]) -> bool {
        let has = |bytes: &[u8]| find(frame, bytes).is_some();
        let is_method = |class: u8, method: u8| {
            frame.first() == Some(&1) && frame.get(7..11) == Some(&[0, class, 0, method])
        };

        match (protocol, to_server) {
            (Protocol::Mongo, true) => match self {
                Self::SaveOrClaim => has(b"claimed_by") && !has(b"$pull") && has(b"update"),
                Self::Clear => has(b"$pull") && has(b"claimed_by"),
                Self::Position => has(b"positions\0") && has(b"token\0"),
                _ => false,
            },
            (Protocol::Amqp, true) => match self {
                Self::Publish => is_method(60, 40) && has(b".messages"),
                Self::SendCommand => is_method(60, 40) && has(b".commands"),
                Self::FinishCommand => is_method(60, 80),
                _ => false,
            },
            (Protocol::Amqp, false) => self == Self::Confirm && is_method(60, 80),
            (Protocol::Mongo, false) => false,
        }
    }
}

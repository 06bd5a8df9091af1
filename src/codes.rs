//! What each MongoDB error means for an outbox.
//!
//! A write that ends in an error has either certainly not happened, or it may have. The difference decides what a
//! caller may do next, so it is decided in one place, by the table below.
//!
//! | error | counts as |
//! |---|---|
//! | no server could be selected; the client was shut down | [`Verdict::NotSent`]: nothing happened |
//! | 11000, 11001 duplicate key | [`Verdict::Duplicate`] |
//! | 10334, 17419, 17420 document too large; 15 nested too deep | [`Verdict::TooLarge`] |
//! | any other answer of the server that it will not do this (validation, authorisation, bad value, …) | [`Verdict::Refused`]: nothing happened |
//! | network error, cleared pool, unreadable reply | [`Verdict::Unknown`]: it may have happened |
//! | write concern not met (64 timeout, 11602 interrupted by a step-down, 91 shutdown, …) | [`Verdict::Unknown`] |
//! | 6, 7, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436, 50, 11601, 24, 112: not primary, shutting down, interrupted, out of time, conflict with another write | [`Verdict::Unknown`] |
//!
//! The driver has by then tried a retryable write twice. The AMQP side of the table is
//! [`amqp::Published`](crate::amqp::Published): what the broker's answer means for a message.

use mongodb::error::{Error, ErrorKind, WriteFailure};

/// What an error says about the write it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The write never left; it can be tried again as it is.
    NotSent,
    /// A document with this `_id`, or another unique key, exists.
    Duplicate,
    /// The document would be larger, or nested deeper, than the server takes.
    TooLarge,
    /// The server will not do it, now or later; nothing was written.
    Refused,
    /// It may have happened, and may still be rolled back.
    Unknown,
}

const DUPLICATE: [i32; 2] = [11000, 11001];
const TOO_LARGE: [i32; 4] = [10334, 17419, 17420, 15];
/// Codes with which a server breaks off work that it may have done in part.
const INTERRUPTED: [i32; 17] =
    [6, 7, 24, 50, 89, 91, 112, 134, 189, 262, 9001, 10107, 11600, 11601, 11602, 13435, 13436];

/// Reads an error by the table of this module.
pub fn verdict(error: &Error) -> Verdict {
    match error.kind.as_ref() {
        ErrorKind::ServerSelection { .. }
        | ErrorKind::Shutdown
        | ErrorKind::InvalidArgument { .. }
        | ErrorKind::DnsResolve { .. } => Verdict::NotSent,
        ErrorKind::Command(command) => of_code(command.code, error),
        ErrorKind::Write(WriteFailure::WriteError(write)) => of_code(write.code, error),
        ErrorKind::Authentication { .. } | ErrorKind::BsonSerialization(_) => Verdict::Refused,
        _ => Verdict::Unknown,
    }
}

fn of_code(code: i32, error: &Error) -> Verdict {
    if DUPLICATE.contains(&code) {
        Verdict::Duplicate
    } else if TOO_LARGE.contains(&code) {
        Verdict::TooLarge
    } else if INTERRUPTED.contains(&code) || error.contains_label("RetryableWriteError") {
        Verdict::Unknown
    } else {
        Verdict::Refused
    }
}

/// The server's code, where it gave one.
pub fn code(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some(concern.code),
        _ => None,
    }
}

/// What a person has to do about an error that waiting doesn't end, where that is known.
pub fn advice(error: &Error) -> Option<&'static str> {
    const CREDENTIALS: &str = "correct the user, the password and authSource in the URI";
    match code(error) {
        Some(13) => Some(
            "this user lacks a privilege: grant it find and update on what is watched and readWrite on the state database",
        ),
        Some(18 | 8000) => Some(CREDENTIALS),
        _ if matches!(error.kind.as_ref(), ErrorKind::Authentication { .. }) => Some(CREDENTIALS),
        // The driver keeps no more of it than this text.
        _ if error.to_string().contains("invalid peer certificate") => Some(
            "the server's certificate is not accepted: name the authority that signed it with tlsCAFile in the URI, and a \
             host that it is for",
        ),
        _ => None,
    }
}

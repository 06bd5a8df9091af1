//! Maps each MongoDB error to what it means for the change stream.
//!
//! | error | means |
//! |---|---|
//! | 286 change stream history lost, 280 fatal change stream error, 260 invalid resume token, 136 capped position lost, 10334 a change too large to be sent | [`Fault::Lost`]: the stream can't be reopened at this position |
//! | 9, 14, 40647, 40648, 40649, 50811, 50788 … a token the server can't read | [`Fault::Lost`] |
//! | 13 not authorised, 18 authentication failed, 8000 refused by Atlas | [`Fault::Fatal`]: a person has to act |
//! | a failed login, as the driver reports it | [`Fault::Fatal`] at the start, [`Fault::Transient`] later: a failover interrupts logins |
//! | 40573 not a replica set; 59, 115, 40324 no change streams | [`Fault::Fatal`] |
//! | 166 (a view or a time series) or 72 (a read concern that change streams don't support), if the error occurs when a stream is opened | [`Fault::Fatal`] |
//! | everything else: network, election, shutdown, a cursor that is gone, … | [`Fault::Transient`]: retried from the last position |
//!
//! A damaged token can make the server fail in any way while decoding it (for example with error 15,
//! overflow). So [`Fault::Lost`] also applies if the server itself refuses to open the stream several times
//! in a row, for at least [`Settings::refused_for`](crate::Settings::refused_for), with no transient error
//! ([`is_transient`]) in between. The exception is a position that the rescuer took from the server's clock a
//! short time ago: such a position cannot be lost, so the server itself causes the failure, and a person has
//! to act.
//!
//! A [`Fault::Fatal`] ends the rescuer only at its start. Later it is reported as a problem of the
//! affected stream or collection and retried. No restart is needed after the repair, and other
//! streams and collections are not affected.

use document_outbox::internal::error_codes;
use mongodb::error::{Error, ErrorKind};

/// Network failures, elections, shutdowns, interruptions and routing errors: the driver
/// specification's list of errors after which change streams resume, together with the error codes
/// of a busy server.
const TRANSIENT: [i32; 24] = [
    6, 7, 43, 46, 50, 63, 89, 91, 112, 133, 134, 150, 189, 202, 234, 237, 262, 9001, 10107, 11600, 11601,
    11602, 13435, 13436,
];

const NOT_ALLOWED: &str = "MongoDB refuses this user; grant it find, listIndexes and changeStream on the \
    watched databases and readWrite on the state database, or correct the credentials";
const UNSUPPORTED: &str = "this server lacks the change streams that the rescuer needs; use MongoDB 6.0 or \
    later as a \
     replica set or sharded cluster";
const UNWATCHABLE: &str = "MongoDB refuses such a change stream; watch collections (not views or time \
    series), and use no read concern except majority in the URI";
/// The advice for a stream that the server refuses to open even at the server's present time.
pub(crate) const REFUSED: &str = "MongoDB refuses to open the change stream, and the saved position is not \
     the cause; read the server's error, and correct the watched collections, the URI or the server";

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Try again after a pause, from the last position.
    Transient,
    /// The position is no longer usable.
    Lost,
    /// A person has to act; the sentence describes the repair.
    Fatal(&'static str),
}

/// Classifies an error at the start, where wrong credentials are the most likely reason.
pub(crate) fn at_start(error: &Error) -> Fault {
    if matches!(error.kind.as_ref(), ErrorKind::Authentication { .. }) {
        return Fault::Fatal(NOT_ALLOWED);
    }
    of(error)
}

pub(crate) fn of(error: &Error) -> Fault {
    match error.kind.as_ref() {
        // The driver reports this kind of error for every interrupted login, for example when a
        // member is shutting down.
        ErrorKind::Authentication { .. } => Fault::Transient,
        ErrorKind::InvalidArgument { .. } | ErrorKind::IncompatibleServer { .. } => Fault::Fatal(UNSUPPORTED),
        _ => error_codes::code(error).map_or(Fault::Transient, of_code),
    }
}

/// Classifies an error that prevents or ends a stream.
pub(crate) fn of_stream(error: &Error) -> Fault {
    match error_codes::code(error) {
        Some(166 | 72) => Fault::Fatal(UNWATCHABLE),
        _ => of(error),
    }
}

/// Whether a refusal to open a stream is caused by the server's state rather than by the position.
pub(crate) fn is_transient(error: &Error) -> bool {
    if error.contains_label("ResumableChangeStreamError") {
        return true;
    }
    match error_codes::code(error) {
        Some(code) => TRANSIENT.contains(&code),
        // An error without a code is not from the server, so it is not a refusal.
        None => true,
    }
}

/// The error, and what a person has to do about it.
pub(crate) fn explain(error: &Error, fault: Fault) -> String {
    match fault {
        Fault::Fatal(advice) => format!("{}; {advice}", error.kind),
        Fault::Transient | Fault::Lost => text(error),
    }
}

/// The error's text without the server's full response, and advice in case waiting doesn't help.
pub(crate) fn text(error: &Error) -> String {
    match error_codes::advice(error) {
        Some(advice) => format!("{}; {advice}", error.kind),
        None => error.kind.to_string(),
    }
}

fn of_code(code: i32) -> Fault {
    match code {
        286 | 280 | 260 | 136 | 10334 | 9 | 14 | 40647 | 40648 | 40649 | 50788 | 50811 => Fault::Lost,
        13 | 18 | 8000 => Fault::Fatal(NOT_ALLOWED),
        40573 | 59 | 115 | 40324 => Fault::Fatal(UNSUPPORTED),
        _ => Fault::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_codes_say_that_a_position_is_lost() {
        for code in [286, 280, 260, 136, 10334, 9] {
            assert_eq!(of_code(code), Fault::Lost, "{code}");
        }
        // The first five codes mean: not primary, interrupted at shutdown, cursor not found, exceeded time
        // limit, and host unreachable.
        for code in [10107, 11600, 43, 50, 6, 189, 91, 133, 234, 237] {
            assert_eq!(of_code(code), Fault::Transient, "{code}");
        }
    }
}

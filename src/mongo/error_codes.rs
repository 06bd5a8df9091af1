//! Classifies MongoDB errors by their meaning for a write.
//!
//! A write that ends in an error has either certainly not happened, or may have happened. The caller's next step
//! depends on this difference, so errors are classified only in this module, by the table below.
//!
//! | error | counts as |
//! |---|---|
//! | no server could be selected; the client was shut down; a new connection was refused (during a failover no login succeeds) | [`Verdict::NotSent`]: nothing was written |
//! | 11000, 11001 duplicate key | [`Verdict::Duplicate`] |
//! | 10334, 17419, 17420 document too large; 15 nested too deep | [`Verdict::TooLarge`] |
//! | any other refusal by the server (validation, authorisation, bad value, …) or by the driver (a bad argument, a value that can't be encoded) | [`Verdict::Refused`]: nothing was written |
//! | network error, cleared pool, unreadable reply | [`Verdict::Unknown`]: the write may have happened |
//! | write concern not met (64 timeout, 11602 interrupted by a step-down, 91 shutdown, …) | [`Verdict::Unknown`] |
//! | 6, 7, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436, 50, 11601, 24, 112: not primary, shutting down, interrupted, out of time, conflict with another write | [`Verdict::Unknown`] |
//!
//! By the time an error is reported, the driver has tried a retryable write twice. The AMQP counterpart of the table is
//! [`amqp::Published`](crate::amqp::Published), which describes the broker's answer for a message.

use std::io;

use mongodb::error::{Error, ErrorKind, WriteFailure};

const DUPLICATE: [i32; 2] = [11000, 11001];
const TOO_LARGE: [i32; 4] = [10334, 17419, 17420, 15];
const INTERRUPTED: [i32; 17] =
    [6, 7, 24, 50, 89, 91, 112, 134, 189, 262, 9001, 10107, 11600, 11601, 11602, 13435, 13436];

/// The advice if the credentials are refused.
const CREDENTIALS: &str = "correct the user, the password and authSource in the URI";

/// What an error means for its write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The write was not sent; it can be retried unchanged.
    NotSent,
    /// A document with the same `_id`, or with the same value of another unique key, exists.
    Duplicate,
    /// The document would be larger, or nested deeper, than the server accepts.
    TooLarge,
    /// The server would refuse the write every time; nothing was written.
    Refused,
    /// The write may have happened, and may still be rolled back.
    Unknown,
}

/// Classifies an error by the table of this module.
pub fn verdict(error: &Error) -> Verdict {
    if is_unencodable(error) {
        return Verdict::Refused;
    }
    match error.kind.as_ref() {
        // In each of these cases the write was not sent. A login, for example, precedes every write on its connection.
        ErrorKind::ServerSelection { .. }
        | ErrorKind::Shutdown
        | ErrorKind::DnsResolve { .. }
        | ErrorKind::Authentication { .. } => Verdict::NotSent,
        ErrorKind::Io(error) if is_of::<NotSent>(error) => Verdict::NotSent,
        ErrorKind::InvalidArgument { .. } => Verdict::Refused,
        ErrorKind::Command(command) => of_code(command.code, error),
        ErrorKind::Write(WriteFailure::WriteError(write)) => of_code(write.code, error),
        _ => Verdict::Unknown,
    }
}

/// Whether a value could not be converted to BSON. The driver reports such an error as a separate kind in only one
/// BSON version, so statements are encoded before they are passed to the driver.
pub(crate) fn is_unencodable(error: &Error) -> bool {
    match error.kind.as_ref() {
        ErrorKind::BsonSerialization(_) => true,
        ErrorKind::Io(error) => is_of::<Unencodable>(error),
        _ => false,
    }
}

/// Whether an error wraps an error of type `T`, which is one of this module's types.
fn is_of<T: std::error::Error + 'static>(error: &io::Error) -> bool {
    let Some(source) = error.get_ref() else { return false };
    source.is::<T>()
}

/// The error of a write that has certainly not been sent.
#[derive(Debug, thiserror::Error)]
#[error("not sent: {0}")]
struct NotSent(String);

/// The error of a value that could not be converted to BSON.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unencodable(String);

// The functions below create a driver error from an `io::Error`, because the driver lets other crates create no other
// kind. The driver error shows the text of the `io::Error`.

/// Creates the error of a write that has certainly not been sent.
pub(crate) fn not_sent(why: impl Into<String>) -> Error {
    io::Error::other(NotSent(why.into())).into()
}

/// Creates the error of a write whose statement can't be converted to BSON.
pub(crate) fn unencodable(why: impl Into<String>) -> Error {
    io::Error::new(io::ErrorKind::InvalidInput, Unencodable(why.into())).into()
}

/// Creates the error of a write that may have happened.
pub(crate) fn lost(why: impl Into<String>) -> Error {
    io::Error::other(why.into()).into()
}

fn of_code(code: i32, error: &Error) -> Verdict {
    if DUPLICATE.contains(&code) {
        Verdict::Duplicate
    } else if TOO_LARGE.contains(&code) {
        Verdict::TooLarge
    } else if interrupts(code) || error.contains_label("RetryableWriteError") {
        Verdict::Unknown
    } else {
        Verdict::Refused
    }
}

/// Whether this code means that the server was interrupted and may have executed a part of the work.
pub(crate) fn interrupts(code: i32) -> bool {
    INTERRUPTED.contains(&code)
}

/// Returns advice for an error that waiting does not resolve, or `None` if there is no advice.
pub fn advice(error: &Error) -> Option<&'static str> {
    match code(error) {
        Some(13) => Some(
            "this user lacks a privilege: grant it find and update on the watched databases and readWrite \
             on the state database",
        ),
        Some(18 | 8000) => Some(CREDENTIALS),
        _ if matches!(error.kind.as_ref(), ErrorKind::Authentication { .. }) => Some(CREDENTIALS),
        // The driver keeps only the text of this error.
        _ if error.to_string().contains("invalid peer certificate") => Some(
            "the server's certificate is not accepted: name the authority that signed it with tlsCAFile in the URI, and use a host name that the certificate was issued for",
        ),
        _ => None,
    }
}

/// Describes an error, with advice if known. The server's own text about a write is left out, because it can quote the
/// document.
pub fn describe(error: &Error) -> String {
    let said = match error.kind.as_ref() {
        ErrorKind::Command(command) => format!("{} (code {})", command.code_name, command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => {
            format!("the write was refused (code {})", write.code)
        }
        _ => error.to_string(),
    };
    match advice(error) {
        Some(advice) => format!("{said}; {advice}"),
        None => said,
    }
}

/// Returns the server's error code, if there is one.
pub fn code(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some(concern.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_our_own_are_filed_like_the_drivers() {
        assert_eq!(verdict(&not_sent("no server")), Verdict::NotSent);
        assert_eq!(verdict(&unencodable("a name with a NUL")), Verdict::Refused);
        assert_eq!(verdict(&lost("no answer")), Verdict::Unknown);
        assert!(not_sent("no server").to_string().contains("no server"));
    }

    #[tokio::test]
    async fn a_wrong_argument_is_refused_and_no_outage() {
        let options = mongodb::options::ClientOptions::builder().hosts(Vec::new()).build();
        let client = mongodb::Client::with_options(options).unwrap();
        let unacknowledged = mongodb::options::WriteConcern::nodes(0);
        let collection = client.database("a").collection::<mongodb::bson::Document>("b");
        let wrong = collection.delete_one(mongodb::bson::doc! {}).write_concern(unacknowledged).await;
        assert_eq!(verdict(&wrong.unwrap_err()), Verdict::Refused);
    }
}

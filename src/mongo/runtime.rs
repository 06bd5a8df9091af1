//! Detects that the tokio runtime on which the MongoDB client was created has ended.
//!
//! The MongoDB client has tasks on the runtime on which it was created. Once that runtime has ended, every call fails
//! at once, as if no server could be found. A typical case is a client in a `static` that is used by tests which each
//! have their own runtime. In this case the request was not sent, and the error should give the real reason.

use mongodb::error::{Error, ErrorKind};

/// Whether the error reports that no server could be selected although the client knows a server that accepts writes.
pub(crate) fn has_ended(error: &Error) -> bool {
    let ErrorKind::ServerSelection { message, .. } = error.kind.as_ref() else { return false };
    let writable = ["Type: RsPrimary", "Type: Mongos", "Type: Standalone", "Type: LoadBalancer"];
    let asks_for_one = message.contains("ReadPreference(Primary)") || message.contains("criteria Predicate");
    asks_for_one && writable.iter().any(|kind| message.contains(kind))
}

/// If the cause of the error is that the runtime has ended, replaces the error with one that names this cause.
pub(crate) fn explain(error: Error) -> Error {
    if !has_ended(&error) {
        return error;
    }
    // A driver error that is created from an `io::Error` shows that error's text.
    Error::from(std::io::Error::other(
        "the tokio runtime on which the MongoDB client was created has ended: create the client on the runtime that uses it, and keep that runtime alive as long as the client",
    ))
}

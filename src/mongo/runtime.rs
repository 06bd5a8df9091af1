//! What the end of a tokio runtime means for what was made on it.
//!
//! MongoDB's client has tasks on the runtime that it was made on, and is of no use once that has ended: every call fails at
//! once, with the words of a server that can't be found beside a description that names it. The classic case is a client in a
//! `static`, used by tests with a runtime each. Nothing was sent then, and the error had better say why.

use mongodb::error::{Error, ErrorKind};

/// Whether no server could be chosen although there is one that takes writes.
pub(crate) fn has_ended(error: &Error) -> bool {
    let ErrorKind::ServerSelection { message, .. } = error.kind.as_ref() else { return false };
    let writable = ["Type: RsPrimary", "Type: Mongos", "Type: Standalone", "Type: LoadBalancer"];
    let asks_for_one = message.contains("ReadPreference(Primary)") || message.contains("criteria Predicate");
    asks_for_one && writable.iter().any(|kind| message.contains(kind))
}

/// The error, or in its place one that says that the runtime has ended.
pub(crate) fn explain(error: Error) -> Error {
    if !has_ended(&error) {
        return error;
    }
    // Of the driver's own errors, this kind shows its text.
    Error::from(std::io::Error::other(
        "the tokio runtime that MongoDB's client was made on has ended: make the client on the runtime that uses it, and \
         keep that runtime for as long as the client",
    ))
}

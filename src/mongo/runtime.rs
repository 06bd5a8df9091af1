//! The effect of the end of a tokio runtime on objects that were created on it.
//!
//! MongoDB's client has tasks on the runtime on which it was created, and is unusable once that has ended:
//! every call fails at once, as if the server could not be found. The classic case is a client in a `static`,
//! used by tests with a runtime each. The request was not sent then, and the error should give the reason.

use mongodb::error::{Error, ErrorKind};

/// Whether no server could be chosen although one accepts writes.
pub(crate) fn has_ended(error: &Error) -> bool {
    let ErrorKind::ServerSelection { message, .. } = error.kind.as_ref() else { return false };
    let writable = ["Type: RsPrimary", "Type: Mongos", "Type: Standalone", "Type: LoadBalancer"];
    let asks_for_one = message.contains("ReadPreference(Primary)") || message.contains("criteria Predicate");
    asks_for_one && writable.iter().any(|kind| message.contains(kind))
}

/// The error, replaced by one that names the ended runtime if that is the cause.
pub(crate) fn explain(error: Error) -> Error {
    if !has_ended(&error) {
        return error;
    }
    // This kind of the driver's errors shows its text.
    Error::from(std::io::Error::other(
        "the tokio runtime on which MongoDB's client was created has ended: create the client on the \
         runtime that uses it, and \
         keep that runtime for as long as the client",
    ))
}

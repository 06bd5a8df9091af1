//! Recognises errors of MongoDB that concern this worker rather than a document.

use mongodb::error::{Error, ErrorKind};

/// The server's error code for a request for which the user lacks a privilege.
pub(crate) const UNAUTHORISED: i32 = 13;

/// Whether the error means that no MongoDB server could be used, whatever the request.
pub(crate) fn is_unreachable(error: &Error) -> bool {
    matches!(
        error.kind.as_ref(),
        ErrorKind::ServerSelection { .. }
            | ErrorKind::Authentication { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::Shutdown
    )
}

//! Recognises errors of MongoDB that concern this worker rather than a document.

use mongodb::error::{Error, ErrorKind};

/// The server's code for a command that the user may not send.
pub(crate) const UNAUTHORISED: i32 = 13;

/// Whether no server was usable for any request.
pub(crate) fn is_unreachable(error: &Error) -> bool {
    matches!(
        error.kind.as_ref(),
        ErrorKind::ServerSelection { .. }
            | ErrorKind::Authentication { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::Shutdown
    )
}

//! What an error of MongoDB says of this worker rather than of a document.

use mongodb::error::{Error, ErrorKind};

/// The server's code for a command that the user may not send.
pub(crate) const UNAUTHORISED: i32 = 13;

/// Whether no server could be worked with, whatever was asked of it.
pub(crate) fn is_away(error: &Error) -> bool {
    matches!(
        error.kind.as_ref(),
        ErrorKind::ServerSelection { .. }
            | ErrorKind::Authentication { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::Shutdown
    )
}

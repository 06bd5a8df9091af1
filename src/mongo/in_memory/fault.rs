//! Faults of saves, for tests of the code that handles their outcomes.

/// A fault of one save, insert or delete of a [`Store`](crate::Store).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaveFault {
    /// Another process saves the document first, without messages, so a save or delete ends as a conflict. For an
    /// insert, another process first inserts an equal document, with messages of its own.
    Conflict,
    /// Another process deletes the document first. An insert doesn't take this fault; the next save or delete does.
    Gone,
    /// The save is written, but its answer is lost, so the outcome is unknown. As in production, its messages stay in
    /// the document under their claim until the claim ends.
    UnknownWritten,
    /// The save is not written, and the outcome is unknown.
    UnknownNotWritten,
    /// MongoDB can't be reached, so the save is not sent.
    Unavailable,
}

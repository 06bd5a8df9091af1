//! What happens to commands, as values. What happens to messages is announced by the processor.

use document_outbox::{DocumentRef, command::Reason, dispatch::Processed, internal::Hold};

use crate::admission::Refusal;

/// What became of a command.
///
/// Every delivery begins with [`Refused`](Self::Refused), which ends it, or [`Taken`](Self::Taken), and ends with one of
/// [`Finished`](Self::Finished), [`Coalesced`](Self::Coalesced), [`LeftToSweep`](Self::LeftToSweep),
/// [`PutBack`](Self::PutBack) and [`GivenBack`](Self::GivenBack). The last two are announced after the broker has it back.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DispatcherEvent {
    /// A command was admitted.
    Taken {
        /// For which document.
        document: DocumentRef,
        /// Why it was sent.
        reason: Reason,
    },
    /// A delivery was rejected, without being put back.
    Refused {
        /// Why.
        refusal: Refusal,
    },
    /// A command is kept until its document can be processed again.
    Kept {
        /// Which document.
        document: DocumentRef,
        /// What stands in the way.
        why: Left,
    },
    /// Nothing is left to do for this worker; acknowledged.
    Finished {
        /// Which document.
        document: DocumentRef,
        /// What the last pass over it came to.
        processed: Processed,
    },
    /// Another command for the same document waits and will do this one's work; acknowledged.
    Coalesced {
        /// Which document.
        document: DocumentRef,
    },
    /// Messages are left; acknowledged all the same, for the sweep to find them when they are due.
    LeftToSweep {
        /// Which document.
        document: DocumentRef,
        /// What stood in the way.
        why: Left,
    },
    /// This worker can do nothing about it; not acknowledged, and given back to the broker after a pause, for another worker
    /// until it expires.
    PutBack {
        /// Which document.
        document: DocumentRef,
        /// What stood in the way.
        why: Left,
    },
    /// The worker stops; not acknowledged, so the broker hands the command to another.
    GivenBack {
        /// Which document.
        document: DocumentRef,
    },
}

/// What stands in the way of a document's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Left {
    /// The first of them waits until then.
    Held(Hold),
    /// There is no destination available.
    Unavailable,
    /// MongoDB did not answer, or refused; says how, without a document's content.
    MongoDb(String),
    /// It is of another MongoDB cluster than this worker's.
    OtherCluster,
    /// There are more than can be delivered while one command is kept.
    TookTooLong,
    /// Processing it panicked, which is a defect.
    Panicked,
}

//! The events of commands, as values. The processor announces the events of messages.

use document_outbox::{DocumentRef, command::Reason, dispatch::Processed, internal::Hold};

use crate::admission::Refusal;

/// The outcome of a command.
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
    /// A delivery was rejected without requeueing it.
    Refused {
        /// Why.
        refusal: Refusal,
    },
    /// A command is kept until its document can be processed again.
    Kept {
        /// Which document.
        document: DocumentRef,
        /// The obstacle.
        why: Left,
    },
    /// This worker has no more work for it; acknowledged.
    Finished {
        /// Which document.
        document: DocumentRef,
        /// The result of the last pass over it.
        processed: Processed,
    },
    /// Another command for the same document is waiting and will do this one's work; acknowledged.
    Coalesced {
        /// Which document.
        document: DocumentRef,
    },
    /// Messages are left; the command is still acknowledged, and the sweep finds them when they are due.
    LeftToSweep {
        /// Which document.
        document: DocumentRef,
        /// The obstacle.
        why: Left,
    },
    /// This worker cannot process it; it is not acknowledged, and returns to the broker after a pause, for
    /// another worker, until it expires.
    PutBack {
        /// Which document.
        document: DocumentRef,
        /// The obstacle.
        why: Left,
    },
    /// The worker stops; not acknowledged, so the broker hands the command to another.
    GivenBack {
        /// Which document.
        document: DocumentRef,
    },
}

/// Why a document's messages cannot be delivered now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Left {
    /// The first of them waits until then.
    Held(Hold),
    /// The destination is unavailable.
    Unavailable,
    /// MongoDB did not answer, or refused; has the error, without a document's content.
    MongoDb(String),
    /// It is from another MongoDB cluster.
    OtherCluster,
    /// There are more messages than can be delivered while one command is kept.
    TookTooLong,
    /// Processing it panicked, which is a defect.
    Panicked,
}

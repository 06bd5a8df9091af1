//! Defines the events of commands. The processor emits the events of messages.

use document_outbox::{DocumentRef, command::Reason, dispatch::Processed, internal::Hold};

use crate::admission::Refusal;

/// An event in the processing of a command.
///
/// Every delivery begins with [`Refused`](Self::Refused), which ends it, or with [`Taken`](Self::Taken).
/// After `Taken` it ends with one of [`Finished`](Self::Finished), [`Coalesced`](Self::Coalesced),
/// [`LeftToSweep`](Self::LeftToSweep), [`PutBack`](Self::PutBack) and [`GivenBack`](Self::GivenBack).
/// `PutBack` and `GivenBack` are emitted after the command was returned to the broker.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DispatcherEvent {
    /// A command was admitted.
    Taken {
        /// The document that the command names.
        document: DocumentRef,
        /// Why the command was sent.
        reason: Reason,
    },
    /// A delivery was rejected without requeueing it.
    Refused {
        /// The reason.
        refusal: Refusal,
    },
    /// A command is kept until its document can be processed again.
    Kept {
        /// The document.
        document: DocumentRef,
        /// Why the document cannot be processed now.
        why: Left,
    },
    /// This worker has no more work for the command, and acknowledged it.
    Finished {
        /// The document.
        document: DocumentRef,
        /// The result of the last pass over the document.
        processed: Processed,
    },
    /// Another command for the same document is waiting, and processing that command delivers the messages of
    /// this one, too. This command was acknowledged.
    Coalesced {
        /// The document.
        document: DocumentRef,
    },
    /// Messages remain, and the sweep will find them when they are due. The command was acknowledged.
    LeftToSweep {
        /// The document.
        document: DocumentRef,
        /// Why the messages were left.
        why: Left,
    },
    /// This worker cannot process the command, and did not acknowledge it. After a pause the command
    /// returned to the broker for another worker. This repeats until the command expires.
    PutBack {
        /// The document.
        document: DocumentRef,
        /// Why this worker cannot process the command.
        why: Left,
    },
    /// The worker is stopping and did not acknowledge the command, so the broker hands it to another
    /// worker.
    GivenBack {
        /// The document.
        document: DocumentRef,
    },
}

/// Why a document's messages cannot be delivered now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Left {
    /// The first message is held for this reason.
    Held(Hold),
    /// The destination is unavailable.
    Unavailable,
    /// MongoDB did not answer, or refused the request. Contains the error, without any content of a
    /// document.
    MongoDb(String),
    /// The command is from another MongoDB cluster.
    OtherCluster,
    /// There are more messages than can be delivered while a command is kept.
    TookTooLong,
    /// Processing the document panicked, which is a defect.
    Panicked,
}

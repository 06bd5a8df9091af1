//! The events of a rescuer as values, for logs, counts and tests.

use std::time::Duration;

use document_outbox::{DocumentRef, command::Reason};
use mongodb::{Namespace, bson::Timestamp};

use crate::Warning;

/// Something that happened in a rescuer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RescueEvent {
    /// Another rescuer owns a stream, and this one waits.
    StandingBy {
        /// The name of the stream.
        stream: String,
        /// The name of the owner.
        owner: String,
    },
    /// This rescuer became the owner of a stream.
    Owned {
        /// The name of the stream.
        stream: String,
        /// The epoch of the lease. The stream was taken at least this many times.
        epoch: i64,
    },
    /// This rescuer lost a stream, and is a standby again.
    SteppedBack {
        /// The name of the stream.
        stream: String,
        /// The epoch of the lost lease.
        epoch: i64,
        /// The reason.
        reason: String,
    },
    /// Something works badly or will soon fail.
    Warning {
        /// The name of the stream.
        stream: String,
        /// The warning, with its numbers.
        warning: Warning,
    },
    /// The change stream was opened.
    Opened {
        /// The place from which the stream is read.
        from: StartedFrom,
    },
    /// The stream's cursor ended, and a new cursor was opened at the same position.
    Reopened {
        /// Why the cursor ended.
        cause: ReopenCause,
    },
    /// The stream cannot continue from its position.
    PositionLost {
        /// The cause, and how the rescuer continues.
        reason: String,
        /// The server's error code, if the server reported one.
        code: Option<i32>,
    },
    /// The oldest unprocessed change is held until it is `delay` old.
    Holding {
        /// The document that was changed.
        document: DocumentRef,
    },
    /// A command for this document was confirmed by the broker.
    Queued {
        /// The document.
        document: DocumentRef,
        /// What found the document.
        reason: Reason,
    },
    /// The broker did not confirm commands. The stream waits, and the sweep retries later.
    CommandsFailed {
        /// The number of commands.
        count: usize,
        /// The text of the first error.
        error: String,
    },
    /// No command can be made for a document. This is reported once for each document. The rescuer retries
    /// when the document's outbox changes, and hourly.
    Unsendable {
        /// The document.
        document: DocumentRef,
        /// The reason.
        reason: String,
    },
    /// A page of changes was checked, and the commands it needed were confirmed.
    PageDone {
        /// The number of changes.
        changes: usize,
        /// The number of documents that were changed.
        documents: usize,
        /// The number of documents that were queued.
        queued: usize,
    },
    /// The position was saved.
    PositionSaved {
        /// Every change up to this time was processed.
        cluster_time: Option<Timestamp>,
    },
    /// A round of the sweep ended.
    SweepDone {
        /// Whether the round also read entries without a date.
        full: bool,
        /// The number of collections swept.
        collections: usize,
        /// The number of documents read.
        examined: usize,
        /// The number of documents queued.
        queued: usize,
        /// The number of queries used from the budget.
        queries: usize,
        /// The duration of the round.
        took: Duration,
        /// The number of collections left unfinished; the next round continues them.
        unfinished: usize,
        /// Whether the round was cut short; the next round retries.
        cut_short: bool,
    },
    /// An outbox has malformed elements, which are neither delivered nor deleted.
    Unreadable {
        /// The document.
        document: DocumentRef,
        /// The number of malformed elements.
        count: usize,
        /// The problem of the first malformed element.
        reason: String,
    },
    /// A collection lacks the index that makes its sweep cheap.
    IndexMissing {
        /// The collection.
        namespace: Namespace,
    },
}

/// The place from which a change stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartedFrom {
    /// From now, because there was no position; a sweep finds earlier messages.
    Now,
    /// From the saved position.
    Position,
    /// From the time of a position that was saved for other patterns; a full sweep also runs.
    ChangedPatterns,
    /// From now, because the position was lost.
    AfterLoss,
    /// From the time in the settings; a full sweep also runs.
    Asked,
}

/// Why a stream's cursor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReopenCause {
    /// An error; contains the driver's text.
    Error(String),
    /// A change was held for longer than the server keeps an idle cursor.
    Held,
    /// The watched collection or database was dropped or renamed.
    Invalidated,
    /// The server ended the cursor without an error.
    Ended,
}

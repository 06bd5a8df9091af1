//! The events of a rescuer, as values: for logs, counts and tests.

use std::time::Duration;

use document_outbox::{DocumentRef, command::Reason};
use mongodb::{Namespace, bson::Timestamp};

use crate::Warning;

/// Something that happened in a rescuer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RescueEvent {
    /// Another rescuer owns a stream; this one waits.
    StandingBy {
        /// Which stream.
        stream: String,
        /// The name of the other.
        owner: String,
    },
    /// This rescuer became the owner of a stream.
    Owned {
        /// Which stream.
        stream: String,
        /// How often the stream was taken, at least.
        epoch: i64,
    },
    /// This rescuer lost a stream, and is a standby again.
    SteppedBack {
        /// Which stream.
        stream: String,
        /// The epoch of the lost lease.
        epoch: i64,
        /// Why.
        reason: String,
    },
    /// A warning: something works badly or will soon fail.
    Warning {
        /// Which stream.
        stream: String,
        /// What, with its numbers.
        warning: Warning,
    },
    /// The change stream is open.
    Opened {
        /// From where it is read.
        from: StartedFrom,
    },
    /// The stream's cursor ended and is opened again at its position.
    Reopened {
        /// Why it ended.
        cause: ReopenCause,
    },
    /// The stream cannot continue from its position.
    PositionLost {
        /// Why, and the reaction.
        reason: String,
        /// The server's error code, if the server reported it.
        code: Option<i32>,
    },
    /// A change is at the head of the stream and waits until it is `delay` old.
    Holding {
        /// Whose change it is.
        document: DocumentRef,
    },
    /// A command for this document was confirmed by the broker.
    Queued {
        /// Which document.
        document: DocumentRef,
        /// Who found it.
        reason: Reason,
    },
    /// The broker did not take commands; the stream waits, and the sweep retries later.
    CommandsFailed {
        /// How many.
        count: usize,
        /// The text of the first failure.
        error: String,
    },
    /// No command can be sent for a document, first seen now. It is retried when its outbox changes, and hourly.
    Unsendable {
        /// Which document.
        document: DocumentRef,
        /// Why.
        reason: String,
    },
    /// Changes were checked and their commands were queued.
    PageDone {
        /// How many changes.
        changes: usize,
        /// Of how many documents.
        documents: usize,
        /// How many of these were queued.
        queued: usize,
    },
    /// The position was saved.
    PositionSaved {
        /// Everything up to this time was checked.
        cluster_time: Option<Timestamp>,
    },
    /// A round of the sweep is over.
    SweepDone {
        /// Whether entries without a date were read as well.
        full: bool,
        /// How many collections were swept.
        collections: usize,
        /// How many documents were read.
        examined: usize,
        /// How many were queued.
        queued: usize,
        /// How many queries of the budget it used.
        queries: usize,
        /// How long it took.
        took: Duration,
        /// How many collections it left unfinished; the next round continues there.
        unfinished: usize,
        /// Whether it was cut short; the next round retries.
        cut_short: bool,
    },
    /// Elements of an outbox are not entries; they are left alone.
    Unreadable {
        /// Where.
        document: DocumentRef,
        /// How many.
        count: usize,
        /// What is wrong with the first.
        reason: String,
    },
    /// A collection lacks the index that makes its sweep cheap.
    IndexMissing {
        /// Which.
        namespace: Namespace,
    },
}

/// From where a change stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartedFrom {
    /// There was no position: from now, with a sweep for earlier messages.
    Now,
    /// From the saved position.
    Position,
    /// From the time of a position for other patterns, with a sweep.
    ChangedPatterns,
    /// From now, after a lost position.
    AfterLoss,
    /// From the time in the settings, with a sweep.
    Asked,
}

/// Why a stream's cursor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReopenCause {
    /// An error, with the driver's text.
    Error(String),
    /// A change was held for longer than an unread cursor lives.
    Held,
    /// The collection or database that it was opened on was dropped or renamed.
    Invalidated,
    /// The server ended it without an error.
    Ended,
}

//! The state of a rescuer at one moment, in the form that `/status` returns.

use serde::Serialize;

use super::event::RescueEvent;

/// The state of a rescuer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The name of this process in leases.
    pub name: String,
    /// One status for each stream. Each stream has its own delay, and the stream with the shortest
    /// delay comes first.
    pub streams: Vec<StreamStatus>,
    /// Why the rescuer is not ready, in sentences; empty if it is ready. A standby whose stream has a live
    /// owner is ready.
    pub not_ready: Vec<String>,
}

/// The state of one stream, as far as this process knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StreamStatus {
    /// The stream's name in the state database.
    pub name: String,
    /// The delay in seconds.
    pub delay: f64,
    /// The patterns of the stream's collections.
    pub patterns: Vec<String>,
    /// The role of this process for the stream.
    pub role: Role,
    /// Whether this process can send commands, as far as it knows.
    pub able: bool,
    /// The name of the owner.
    pub owner: Option<String>,
    /// The epoch of the lease. The stream was taken at least this many times.
    pub epoch: Option<i64>,
    /// The number of seconds until the lease ends, as last read; negative if the lease is over.
    pub lease_ends_in: Option<f64>,
    /// The cluster time of the saved position, in RFC 3339. Only the owner knows this field and the
    /// following ones.
    pub position: Option<String>,
    /// Age of the saved position, in seconds.
    pub token_age: Option<f64>,
    /// The time by which the stream lags behind its delay, in seconds.
    pub lag: Option<f64>,
    /// The time that the oplog covers before the saved position, in seconds. Absent if unknown, or if the
    /// oplog has not dropped any entry yet.
    pub headroom: Option<f64>,
    /// The operations that currently fail and are retried, in sentences, each with its last error.
    pub troubles: Vec<String>,
    /// The last error.
    pub last_error: Option<LastError>,
    /// The last round of the sweep.
    pub last_sweep: Option<LastSweep>,
    /// The problems of the collections, in sentences: a pattern that matches no collection, a missing
    /// index, documents that the server deletes, documents for which no command can be made.
    pub problems: Vec<String>,
}

/// The role of a process for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// This process has not yet read who owns the stream.
    Starting,
    /// This process reads the change stream and sweeps.
    Owner,
    /// Another process owns the stream.
    Standby,
}

/// An error, which may be resolved by now.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LastError {
    /// The text of the error.
    pub message: String,
    /// The number of seconds since the error.
    pub ago: f64,
}

/// A round of the sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LastSweep {
    /// The number of seconds since the round ended.
    pub ago: f64,
    /// The duration in seconds.
    pub took: f64,
    /// Whether the round also read entries without a date.
    pub full: bool,
    /// The number of collections swept.
    pub collections: usize,
    /// The number of documents read.
    pub examined: usize,
    /// The number of documents queued.
    pub queued: usize,
    /// The number of queries used from the budget.
    pub queries: usize,
    /// The number of collections left unfinished for the next round.
    pub unfinished: usize,
    /// Whether the round was cut short.
    pub cut_short: bool,
}

impl LastSweep {
    /// The status of a round that has just ended; `None` for other events.
    pub(super) fn of(event: &RescueEvent) -> Option<Self> {
        let RescueEvent::SweepDone {
            full,
            collections,
            examined,
            queued,
            queries,
            took,
            unfinished,
            cut_short,
        } = event
        else {
            return None;
        };

        Some(Self {
            ago: 0.0,
            took: took.as_secs_f64(),
            full: *full,
            collections: *collections,
            examined: *examined,
            queued: *queued,
            queries: *queries,
            unfinished: *unfinished,
            cut_short: *cut_short,
        })
    }
}

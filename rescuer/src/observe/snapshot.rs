//! The state of a rescuer at one moment: the shape of `/status`.

use serde::Serialize;

use super::event::RescueEvent;

/// How a rescuer stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The name of this process in leases.
    pub name: String,
    /// One for each delay, the shortest first.
    pub streams: Vec<StreamStatus>,
    /// Why it is not ready, in sentences; empty if it is. A standby of a live owner is ready.
    pub not_ready: Vec<String>,
}

/// The state of one stream, as far as this process knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StreamStatus {
    /// Its name in the state database.
    pub name: String,
    /// In seconds.
    pub delay: f64,
    /// The patterns of its collections.
    pub patterns: Vec<String>,
    /// The role of this process.
    pub role: Role,
    /// Whether this process can send commands, as far as it knows.
    pub able: bool,
    /// Who owns it.
    pub owner: Option<String>,
    /// How often it was taken, at least.
    pub epoch: Option<i64>,
    /// The seconds until its lease ends, as last seen; negative if it is over.
    pub lease_ends_in: Option<f64>,
    /// The cluster time of the saved position, RFC 3339. This and the following fields are known only to the
    /// owner.
    pub position: Option<String>,
    /// Age of the saved position, in seconds.
    pub token_age: Option<f64>,
    /// How far it is behind its delay, in seconds.
    pub lag: Option<f64>,
    /// How far the oplog reaches back beyond the saved position, in seconds; absent if unknown, and if the
    /// oplog has not dropped any entry yet.
    pub headroom: Option<f64>,
    /// The parts that fail now and are retried, in sentences, each with its last error.
    pub troubles: Vec<String>,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
    /// The last round of the sweep.
    pub last_sweep: Option<LastSweep>,
    /// The problems of the collections, in sentences: a pattern that matches none, an index that is missing,
    /// documents that the server deletes, documents for which no command can be made.
    pub problems: Vec<String>,
}

/// The role of a process for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// It has not read the owner yet.
    Starting,
    /// It reads and sweeps.
    Owner,
    /// Another does.
    Standby,
}

/// A failure; it may be over by now.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LastError {
    /// What was said.
    pub message: String,
    /// How many seconds ago.
    pub ago: f64,
}

/// A round of the sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LastSweep {
    /// How many seconds ago it ended.
    pub ago: f64,
    /// How many seconds it took.
    pub took: f64,
    /// Whether entries without a date were read as well.
    pub full: bool,
    /// How many collections were swept.
    pub collections: usize,
    /// How many documents were read.
    pub examined: usize,
    /// How many were queued.
    pub queued: usize,
    /// How many queries of the budget it used.
    pub queries: usize,
    /// How many collections it left unfinished, for the next round.
    pub unfinished: usize,
    /// Whether it was cut short.
    pub cut_short: bool,
}

impl LastSweep {
    /// A round that has just ended; `None` for other events.
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

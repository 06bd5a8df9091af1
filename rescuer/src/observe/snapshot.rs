//! How a rescuer stands at one moment: the shape of `/status`.

use serde::Serialize;

use super::event::RescueEvent;

/// How a rescuer stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// What this process is called in leases.
    pub name: String,
    /// One for each delay, the shortest first.
    pub streams: Vec<StreamStatus>,
    /// Why it is not ready, in sentences; empty when it is. Standing by behind a live owner is ready.
    pub not_ready: Vec<String>,
}

/// How one stream stands, as far as this process knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StreamStatus {
    /// Its name in the state database.
    pub name: String,
    /// In seconds.
    pub delay: f64,
    /// The patterns of its collections.
    pub patterns: Vec<String>,
    /// What this process is to it.
    pub role: Role,
    /// Whether this process can send commands, as far as it knows.
    pub able: bool,
    /// Who owns it.
    pub owner: Option<String>,
    /// How often it was taken, at least.
    pub epoch: Option<i64>,
    /// In how many seconds its lease ends, as last seen; below zero when it is over.
    pub lease_ends_in: Option<f64>,
    /// The cluster time of the saved position, RFC 3339. Only the owner knows; so it is with the rest.
    pub position: Option<String>,
    /// Age of the saved position, in seconds.
    pub token_age: Option<f64>,
    /// How much later than its delay it is read, in seconds.
    pub lag: Option<f64>,
    /// How far the oplog reaches back beyond the saved position, in seconds; absent where that isn't known, and where the
    /// oplog has dropped nothing yet.
    pub headroom: Option<f64>,
    /// What doesn't work now and is tried again, in sentences, each with its last error.
    pub troubles: Vec<String>,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
    /// The last round of the sweep.
    pub last_sweep: Option<LastSweep>,
    /// What is wrong with the collections, in sentences: a pattern that matches none, an index that is missing, documents
    /// that the server deletes, documents for which no command can be made.
    pub problems: Vec<String>,
}

/// What a process is to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// It has not yet asked who owns it.
    Starting,
    /// It reads and sweeps.
    Owner,
    /// Another does.
    Standby,
}

/// Something that went wrong; it may have passed since.
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
    /// Whether entries without a date were looked for as well.
    pub full: bool,
    /// How many collections were swept.
    pub collections: usize,
    /// How many documents were read.
    pub examined: usize,
    /// How many were queued.
    pub queued: usize,
    /// How many queries of the budget it took.
    pub queries: usize,
    /// How many collections it left in the middle, for the next round to continue.
    pub unfinished: usize,
    /// Whether something kept it from reaching its end.
    pub cut_short: bool,
}

impl LastSweep {
    /// A round that has just ended; none for other events.
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

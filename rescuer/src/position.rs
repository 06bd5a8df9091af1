//! Where the stream stands: a low-water mark in the state database.
//!
//! Everything before a saved position was checked and, where needed, queued and confirmed. Positions are written with
//! majority, and only over one of the same epoch, so that an owner that was replaced cannot write over its successor's.
//!
//! ```text
//! document_outbox.positions
//! { _id: "default",          // the stream
//!   token: { _data: ".." },  // absent: nothing was read yet, start at cluster_time
//!   cluster_time: Timestamp, // at or before the token
//!   pipeline: "9f..",        // what the token was made with
//!   owner: "host/..", epoch: 1, updated_at: Date }
//! ```

use document_outbox::ServerTime;
use mongodb::{
    Collection,
    bson::{Bson, DateTime, Timestamp, doc},
    change_stream::event::ResumeToken,
    error::Error,
    options::{ReadConcern, WriteConcern},
};
use serde::{Deserialize, Serialize};

/// How far the stream was dealt with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mark {
    /// Go on after this.
    pub(crate) token: Option<ResumeToken>,
    /// At or before the token.
    pub(crate) cluster_time: Option<Timestamp>,
}

impl Mark {
    pub(crate) fn at(time: Timestamp) -> Self {
        Self { token: None, cluster_time: Some(time) }
    }
}

/// Where to start, and what that says about the past.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Start {
    /// There is no position.
    Fresh,
    /// After the token, or at the time where there is no token yet.
    Resume(Mark),
    /// At the time of a position that was made with another pipeline.
    PipelineChanged(Timestamp),
    /// The position cannot be used; why.
    Lost(String),
}

/// A stored position, read without trusting it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Found {
    token: Option<ResumeToken>,
    cluster_time: Option<Bson>,
    pipeline: Option<Bson>,
}

/// Decides where to start.
pub(crate) fn start(found: Option<Found>, pipeline: &str) -> Start {
    let Some(Found { token, cluster_time, pipeline: made_with }) = found else {
        return Start::Fresh;
    };
    let cluster_time = cluster_time.as_ref().and_then(Bson::as_timestamp);
    let same = made_with.as_ref().and_then(Bson::as_str) == Some(pipeline);
    match (same, token, cluster_time) {
        (true, Some(token), cluster_time) => Start::Resume(Mark { token: Some(token), cluster_time }),
        (true, None, Some(time)) => Start::Resume(Mark::at(time)),
        (true, None, None) => Start::Lost("the saved position has neither a token nor a time".into()),
        (false, _, Some(time)) => Start::PipelineChanged(time),
        (false, _, None) => Start::Lost("the saved position is of other patterns and has no time".into()),
    }
}

/// The stored position of one stream.
pub(crate) struct Positions {
    collection: Collection<Found>,
    stream: String,
    owner: String,
    pipeline: String,
}

#[derive(Serialize)]
struct Stored<'a> {
    #[serde(rename = "_id")]
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a ResumeToken>,
    cluster_time: Option<Timestamp>,
    pipeline: &'a str,
    owner: &'a str,
    epoch: i64,
    updated_at: DateTime,
}

/// One owner, for as long as there are no leases.
const EPOCH: i64 = 1;

/// What a save came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Saved {
    Done,
    /// The position is gone or of another epoch.
    Fenced,
}

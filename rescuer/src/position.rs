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

use mongodb::{
    Client, Collection,
    bson::{Bson, DateTime, Timestamp, doc},
    change_stream::event::ResumeToken,
    error::Error,
    options::{CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern},
};
use serde::{Deserialize, Serialize};

use crate::{Settings, filter::fingerprint};

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

impl Positions {
    pub(crate) fn new(client: &Client, settings: &Settings) -> Self {
        let majority = CollectionOptions::builder()
            .read_concern(ReadConcern::majority())
            .write_concern(WriteConcern::majority())
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .build();
        let database = client.database(&settings.state_database);
        Self {
            collection: database.collection_with_options("positions", majority),
            stream: settings.stream.clone(),
            owner: format!("rescuer/{}", uuid::Uuid::new_v4()),
            pipeline: fingerprint(&settings.watch),
        }
    }

    /// Reads the position and decides where to start.
    pub(crate) async fn load(&self) -> Result<Start, Error> {
        let found = self.collection.find_one(doc! { "_id": &self.stream }).await?;
        Ok(start(found, &self.pipeline))
    }

    /// Writes a position whatever stands there, as a new owner does.
    pub(crate) async fn take(&self, mark: &Mark, now: DateTime) -> Result<(), Error> {
        let stored = self.collection.clone_with_type::<Stored<'_>>();
        let filter = doc! { "_id": &self.stream };
        stored.replace_one(filter, self.stored(mark, now)).upsert(true).await?;
        Ok(())
    }

    /// Moves the position on.
    pub(crate) async fn save(&self, mark: &Mark, now: DateTime) -> Result<Saved, Error> {
        let stored = self.collection.clone_with_type::<Stored<'_>>();
        let filter = doc! { "_id": &self.stream, "epoch": EPOCH, "owner": &self.owner };
        let result = stored.replace_one(filter, self.stored(mark, now)).await?;
        Ok(if result.matched_count == 1 { Saved::Done } else { Saved::Fenced })
    }

    fn stored<'a>(&'a self, mark: &'a Mark, now: DateTime) -> Stored<'a> {
        Stored {
            id: &self.stream,
            token: mark.token.as_ref(),
            cluster_time: mark.cluster_time,
            pipeline: &self.pipeline,
            owner: &self.owner,
            epoch: EPOCH,
            updated_at: now,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Timestamp = Timestamp { time: 7, increment: 1 };

    fn token() -> ResumeToken {
        serde_json::from_value(serde_json::json!({ "_data": "82" })).unwrap()
    }

    fn found(token: Option<ResumeToken>, cluster_time: Option<Bson>, pipeline: &str) -> Option<Found> {
        Some(Found { token, cluster_time, pipeline: Some(pipeline.into()) })
    }

    #[test]
    fn only_the_absence_of_a_position_is_a_fresh_start() {
        assert_eq!(start(None, "p"), Start::Fresh);
    }

    #[test]
    fn a_position_is_resumed_by_its_token_or_by_its_time_before_there_is_one() {
        let mark = Mark { token: Some(token()), cluster_time: Some(TIME) };
        assert_eq!(start(found(Some(token()), Some(TIME.into()), "p"), "p"), Start::Resume(mark));
        assert_eq!(start(found(None, Some(TIME.into()), "p"), "p"), Start::Resume(Mark::at(TIME)));
    }

    #[test]
    fn a_token_of_another_pipeline_is_not_used_but_its_time_is() {
        let other = found(Some(token()), Some(TIME.into()), "other");
        assert_eq!(start(other, "p"), Start::PipelineChanged(TIME));
    }

    #[test]
    fn a_position_that_cannot_be_read_is_lost_and_never_taken_for_a_fresh_start() {
        for unusable in [
            found(None, None, "p"),
            found(None, Some("yesterday".into()), "p"),
            found(Some(token()), None, "other"),
            Some(Found { token: Some(token()), cluster_time: None, pipeline: None }),
        ] {
            assert!(matches!(start(unusable.clone(), "p"), Start::Lost(_)), "{unusable:?}");
        }
    }
}

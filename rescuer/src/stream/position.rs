//! The position of the stream: a low-water mark in the state database.
//!
//! Every change before a saved position was checked and, where needed, queued and confirmed. Positions are
//! written with majority concern, and a write never overwrites a position with a higher epoch, so an owner
//! that was replaced cannot overwrite its successor's position.
//!
//! ```text
//! document_outbox.positions
//! { _id: "default",          // the stream
//!   token: { _data: ".." },  // absent: nothing was read yet, the stream starts at cluster_time
//!   cluster_time: Timestamp, // at or before the token
//!   pipeline: "9f..",        // a hash of the watched collections and the filter
//!   lineage: UUID,           // the UUID of this collection
//!   owner: "host/..", epoch: 1, updated_at: Date }
//! ```
//!
//! # A position of another cluster
//! A token has no meaning in another cluster, which may nevertheless accept it and read from an arbitrary
//! point. A foreign position is recognised by the UUID that the server assigned to the collection of
//! positions: a collection that was dumped and restored, or copied, has another UUID. A copy of a whole
//! server's files has the same UUID, but also the same oplog. If the oplog of the copy was recreated, the
//! server returns error 286, or the position is ahead of the server's time.

use document_outbox::internal::error_codes::{self, Verdict};
use mongodb::{
    Collection, Database,
    bson::{Binary, Bson, DateTime, Document, Timestamp, doc},
    change_stream::event::ResumeToken,
    error::Error,
};
use serde::{Deserialize, Serialize};

use super::filter::fingerprint;
use crate::{
    lineage::Lineage,
    mongo::{Mongo, POSITIONS, lasting},
    watch_plan::Plan,
};

/// The maximum number of seconds that a position may be ahead of the server's time. The clocks of a cluster's
/// members differ by less.
const AHEAD: u32 = 60;

const UNAUTHORISED: i32 = 13;
const NAMESPACE_EXISTS: i32 = 48;

/// A place in the stream up to which every change was processed.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// The token after which to continue.
    pub token: Option<ResumeToken>,
    /// A time that is not later than the token's time.
    pub cluster_time: Option<Timestamp>,
}

impl Mark {
    pub(crate) fn at(time: Timestamp) -> Self {
        Self { token: None, cluster_time: Some(time) }
    }
}

/// The place where a stream starts, and the reason.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// There is no saved position.
    Fresh,
    /// Start after the mark's token, or at the mark's time if it has no token yet.
    Resume(Mark),
    /// Start at the time that an operator set.
    Asked(Timestamp),
    /// Start at the time of a position that was saved with another pipeline.
    PipelineChanged(Timestamp),
    /// The position cannot be used; contains the reason.
    Lost(String),
}

/// A stored position whose fields have not been validated.
#[derive(Debug, Clone, Deserialize)]
pub struct FoundPosition {
    /// The token after which to continue.
    pub token: Option<ResumeToken>,
    /// A time that is not later than the token's time.
    pub cluster_time: Option<Bson>,
    /// The hash of the watched collections and the filter with which the token was made.
    pub pipeline: Option<Bson>,
    /// The UUID of the collection in which the position was saved.
    pub lineage: Option<Bson>,
}

/// The present state with which a position is compared.
#[derive(Debug, Clone)]
pub struct Here {
    /// The hash of the watched collections and the filter.
    pub pipeline: String,
    /// The UUID of the collection of positions, if the server reports it.
    pub lineage: Option<Binary>,
    /// The server's time.
    pub time: Timestamp,
}

/// Decides where to start.
pub fn start(found: Option<FoundPosition>, here: &Here) -> Start {
    let Some(FoundPosition { token, cluster_time, pipeline, lineage }) = found else {
        return Start::Fresh;
    };
    let cluster_time = cluster_time.as_ref().and_then(Bson::as_timestamp);

    // A position without a lineage counts as a position of this cluster. So does every position if
    // this cluster's own lineage is unknown.
    if let (Some(theirs), Some(ours)) = (lineage, here.lineage.clone())
        && theirs != Bson::Binary(ours)
    {
        return Start::Lost("the saved position was copied from another cluster or another time".into());
    }
    if let Some(time) = cluster_time
        && time.time > here.time.time.saturating_add(AHEAD)
    {
        return Start::Lost(
            "the saved position is ahead of the server's time, so it is from another cluster".into(),
        );
    }

    let is_of_this_pipeline = pipeline.as_ref().and_then(Bson::as_str) == Some(&here.pipeline);
    if !is_of_this_pipeline {
        return match cluster_time {
            Some(time) => Start::PipelineChanged(time),
            None => Start::Lost("the saved position is for other patterns and has no time".into()),
        };
    }
    match (token, cluster_time) {
        (Some(token), cluster_time) => Start::Resume(Mark { token: Some(token), cluster_time }),
        (None, Some(time)) => Start::Resume(Mark::at(time)),
        (None, None) => Start::Lost("the saved position has neither a token nor a time".into()),
    }
}

/// The stored position of a stream.
#[derive(Clone)]
pub(crate) struct Positions {
    database: Database,
    collection: Collection<FoundPosition>,
    mongo: Mongo,
    stream: String,
    owner: String,
    pipeline: String,
    lineage: Lineage,
}

impl Positions {
    pub(crate) fn new(mongo: &Mongo, plan: &Plan, owner: &str) -> Self {
        let database = mongo.database(&plan.coverage.state_database);
        Self {
            collection: database.collection_with_options(POSITIONS, lasting()),
            database,
            mongo: mongo.clone(),
            stream: plan.name.clone(),
            owner: owner.into(),
            pipeline: fingerprint(&plan.coverage),
            lineage: Lineage::default(),
        }
    }

    /// Reads the position and decides where to start.
    pub(crate) async fn load(&self) -> Result<Start, Error> {
        let found = self.collection.find_one(self.id()).await?;
        let here = Here {
            pipeline: self.pipeline.clone(),
            lineage: self.ask_lineage().await?,
            time: self.mongo.cluster_time().await?,
        };
        Ok(start(found, &here))
    }

    /// The identity of the cluster that the positions belong to.
    pub(crate) fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Writes the position of a new owner, unless there is a position with a higher epoch.
    pub(crate) async fn take(&self, mark: &Mark, epoch: i64, now: DateTime) -> Result<Saved, Error> {
        let stored = self.collection.clone_with_type::<StoredPosition<'_>>();
        let mut lineage = self.ask_lineage().await?;
        loop {
            if lineage.is_none() {
                // The collection has no UUID before it exists.
                self.create().await?;
                lineage = self.ask_lineage().await?;
            }
            let written = self.stored(mark, lineage.as_ref(), epoch, now);
            match stored.replace_one(self.not_above(epoch), written).upsert(true).await {
                Ok(_) => {}
                // If a position with a higher epoch exists, the filter doesn't match it, and the upsert
                // conflicts with it.
                Err(error) if error_codes::verdict(&error) == Verdict::Duplicate => return Ok(Saved::Fenced),
                Err(error) => return Err(error),
            }

            // If the collection was dropped before the write, the write has created another
            // collection, but the position has the UUID of the old one.
            let made = self.ask_lineage().await?;
            if made == lineage {
                return Ok(Saved::Done);
            }
            lineage = made;
        }
    }

    /// Creates the collection of positions if it doesn't exist.
    async fn create(&self) -> Result<(), Error> {
        match self.database.create_collection(self.collection.name()).await {
            Err(error) if error_codes::code(&error) == Some(NAMESPACE_EXISTS) => Ok(()),
            created => created,
        }
    }

    /// Advances the position.
    pub(crate) async fn save(&self, mark: &Mark, epoch: i64, now: DateTime) -> Result<Saved, Error> {
        let stored = self.collection.clone_with_type::<StoredPosition<'_>>();
        let lineage = self.lineage.known();
        let written = self.stored(mark, lineage.as_ref(), epoch, now);
        let result = stored.replace_one(self.not_above(epoch), written).await?;
        Ok(if result.matched_count == 1 { Saved::Done } else { Saved::Fenced })
    }

    fn id(&self) -> Document {
        doc! { "_id": &self.stream }
    }

    fn not_above(&self, epoch: i64) -> Document {
        doc! { "_id": &self.stream, "epoch": { "$not": { "$gt": epoch } } }
    }

    /// Reads the UUID of the collection; `None` if the collection doesn't exist, or if the user has no
    /// permission to read its UUID.
    async fn ask_lineage(&self) -> Result<Option<Binary>, Error> {
        let listed = self.database.list_collections().filter(doc! { "name": self.collection.name() }).await;
        let asked = match listed {
            Err(error) if error_codes::code(&error) == Some(UNAUTHORISED) => None,
            listed => {
                let mut listed = listed?;
                if listed.advance().await? { listed.deserialize_current()?.info.uuid } else { None }
            }
        };
        self.lineage.set(asked.as_ref());
        Ok(asked)
    }

    fn stored<'a>(
        &'a self,
        mark: &'a Mark,
        lineage: Option<&'a Binary>,
        epoch: i64,
        now: DateTime,
    ) -> StoredPosition<'a> {
        StoredPosition {
            id: &self.stream,
            token: mark.token.as_ref(),
            cluster_time: mark.cluster_time,
            pipeline: &self.pipeline,
            lineage,
            owner: &self.owner,
            epoch,
            updated_at: now,
        }
    }
}

#[derive(Serialize)]
struct StoredPosition<'a> {
    #[serde(rename = "_id")]
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a ResumeToken>,
    cluster_time: Option<Timestamp>,
    pipeline: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lineage: Option<&'a Binary>,
    owner: &'a str,
    epoch: i64,
    updated_at: DateTime,
}

/// The result of a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Saved {
    Done,
    /// The save was refused, because the position is gone or has a higher epoch.
    Fenced,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Timestamp = Timestamp { time: 7, increment: 1 };

    fn token() -> ResumeToken {
        serde_json::from_value(serde_json::json!({ "_data": "82" })).unwrap()
    }

    #[expect(clippy::unnecessary_wraps, reason = "as `start` takes it")]
    fn found(
        token: Option<ResumeToken>,
        cluster_time: Option<Bson>,
        pipeline: &str,
    ) -> Option<FoundPosition> {
        Some(FoundPosition { token, cluster_time, pipeline: Some(pipeline.into()), lineage: None })
    }

    fn here() -> Here {
        let time = Timestamp { time: 1000, increment: 1 };
        Here { pipeline: "p".into(), lineage: Some(lineage(1)), time }
    }

    fn lineage(byte: u8) -> Binary {
        Binary { subtype: mongodb::bson::spec::BinarySubtype::Uuid, bytes: vec![byte; 16] }
    }

    #[test]
    fn only_a_missing_position_is_a_fresh_start() {
        assert_eq!(start(None, &here()), Start::Fresh);
    }

    #[test]
    fn a_position_is_resumed_by_its_token_or_time() {
        let mark = Mark { token: Some(token()), cluster_time: Some(TIME) };
        assert_eq!(start(found(Some(token()), Some(TIME.into()), "p"), &here()), Start::Resume(mark));
        assert_eq!(start(found(None, Some(TIME.into()), "p"), &here()), Start::Resume(Mark::at(TIME)));
    }

    #[test]
    fn of_another_pipeline_only_the_time_is_used() {
        let other = found(Some(token()), Some(TIME.into()), "other");
        assert_eq!(start(other, &here()), Start::PipelineChanged(TIME));
    }

    #[test]
    fn an_unreadable_position_is_lost_and_never_fresh() {
        for unusable in [
            found(None, None, "p"),
            found(None, Some("yesterday".into()), "p"),
            found(Some(token()), None, "other"),
            Some(FoundPosition { token: Some(token()), cluster_time: None, pipeline: None, lineage: None }),
        ] {
            assert!(matches!(start(unusable.clone(), &here()), Start::Lost(_)), "{unusable:?}");
        }
    }

    #[test]
    fn a_position_of_another_cluster_is_lost() {
        let of = |made: Option<u8>, time: u32| {
            let time = Bson::from(Timestamp { time, increment: 1 });
            let lineage = made.map(|byte| Bson::Binary(lineage(byte)));
            Some(FoundPosition { lineage, ..found(Some(token()), Some(time), "p").unwrap() })
        };
        assert!(matches!(start(of(Some(1), 1030), &here()), Start::Resume(_)), "clocks differ a little");
        assert!(
            matches!(start(of(None, 7), &here()), Start::Resume(_)),
            "the UUID was unknown when the position was saved"
        );
        let unknown = Here { lineage: None, ..here() };
        assert!(matches!(start(of(Some(2), 7), &unknown), Start::Resume(_)), "the UUID is unknown now");
        assert!(matches!(start(of(Some(2), 7), &here()), Start::Lost(_)));
        assert!(matches!(start(of(Some(1), 2000), &here()), Start::Lost(_)));
    }
}

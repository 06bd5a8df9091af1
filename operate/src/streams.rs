//! Reads what the rescuers have stored: positions and leases; and the time that the oplog covers.

use std::{collections::BTreeMap, time::Duration};

use mongodb::bson::{DateTime, Document, Timestamp, doc};
use serde::Serialize;

use crate::{Operator, catalogue::is_unauthorised, error::OperateError, text};

/// The message of the first oplog entry of a replica set that has not dropped any entry yet.
const INITIATING: &str = "initiating set";
/// The number of streams that are read at most.
const MOST: i64 = 200;

/// A stream of a rescuer.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct StreamView {
    /// The stream's name.
    pub stream: String,
    /// The time of the last processed change; `None` if there is no position.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub position: Option<DateTime>,
    /// When the position was saved.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub saved_at: Option<DateTime>,
    /// The process that owns the stream.
    pub owner: Option<String>,
    /// The end of the owner's lease.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub lease_until: Option<DateTime>,
    /// The standby that can send commands.
    pub standby: Option<String>,
}

impl StreamView {
    /// Whether a process owns the stream.
    pub fn is_owned(&self, now: DateTime) -> bool {
        self.owner.is_some() && self.lease_until.is_some_and(|until| until > now)
    }
}

/// The time that the oplog covers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OplogWindow {
    /// It was read.
    Covers {
        /// The time of the oldest entry.
        #[serde(serialize_with = "text::as_rfc3339")]
        first: Option<DateTime>,
        /// The time of the newest entry.
        #[serde(serialize_with = "text::as_rfc3339")]
        last: Option<DateTime>,
        /// Whether no entry was dropped yet.
        whole: bool,
    },
    /// It is unknown, for this reason.
    Unknown(String),
}

impl OplogWindow {
    /// The time between its oldest and its newest entry.
    pub fn length(&self) -> Option<Duration> {
        match self {
            Self::Covers { first, last, .. } => Some(text::since((*last)?, (*first)?)),
            Self::Unknown(_) => None,
        }
    }

    /// The time after which the oldest entries are dropped; `None` if it is unknown or no entry was dropped yet.
    pub fn limit(&self) -> Option<Duration> {
        match self {
            Self::Covers { whole: false, .. } => self.length(),
            Self::Covers { .. } | Self::Unknown(_) => None,
        }
    }
}

impl Operator {
    /// The streams, sorted by name.
    pub async fn streams(&self) -> Result<Vec<StreamView>, OperateError> {
        let now = self.now().await?;
        let mut streams: BTreeMap<String, StreamView> = BTreeMap::new();
        for position in self.state_documents("positions", doc! {}).await? {
            let Ok(name) = position.get_str("_id") else { continue };
            let stream = streams.entry(name.to_owned()).or_default();
            stream.position = position.get_timestamp("cluster_time").ok().map(time_of);
            stream.saved_at = position.get_datetime("updated_at").ok().copied();
        }

        for lease in self.state_documents("leases", doc! { "kind": "stream" }).await? {
            let Ok(name) = lease.get_document("_id").and_then(|id| id.get_str("stream")) else { continue };
            let stream = streams.entry(name.to_owned()).or_default();
            stream.owner = lease.get_str("owner").ok().map(str::to_owned);
            stream.lease_until = lease.get_datetime("until").ok().copied();
            stream.standby = lease.get_document("able").ok().and_then(|able| standby(able, now));
        }

        let named = streams.into_iter().map(|(stream, view)| StreamView { stream, ..view });
        Ok(named.collect())
    }

    async fn state_documents(
        &self,
        collection: &str,
        filter: Document,
    ) -> Result<Vec<Document>, OperateError> {
        let name = format!("{}.{collection}", self.settings.state_database);
        let what = || name.clone();
        let collection = self.state_database().collection::<Document>(collection);
        let find = collection.find(filter).limit(MOST).max_time(self.settings.max_time);
        let mut cursor = find.await.map_err(OperateError::reading(what()))?;
        let mut found = Vec::new();
        while cursor.advance().await.map_err(OperateError::reading(what()))? {
            found.push(cursor.deserialize_current().map_err(OperateError::reading(what()))?);
        }
        Ok(found)
    }

    /// The number of documents that are too large for a claim.
    pub(crate) async fn oversized_documents(&self) -> Result<u64, OperateError> {
        let leases = self.state_database().collection::<Document>("leases");
        let count = leases.count_documents(doc! { "kind": "oversized" }).max_time(self.settings.max_time);
        count.await.map_err(OperateError::reading("the leases"))
    }

    /// The time that the oplog covers. A missing privilege is not an error.
    pub async fn oplog_window(&self) -> Result<OplogWindow, OperateError> {
        let ends = match (self.oplog_end(1).await, self.oplog_end(-1).await) {
            (Ok(first), Ok(last)) => (first, last),
            (Err(error), _) | (_, Err(error)) if is_unauthorised(&error) => {
                return Ok(OplogWindow::Unknown("this user may not read local.oplog.rs".to_owned()));
            }
            (Err(error), _) | (_, Err(error)) => return Err(OperateError::reading("the oplog")(error)),
        };
        let (Some(first), Some(last)) = ends else {
            return Ok(OplogWindow::Unknown("this server has no oplog of its own".to_owned()));
        };

        let message = first.get_document("o").and_then(|entry| entry.get_str("msg"));
        Ok(OplogWindow::Covers {
            first: first.get_timestamp("ts").ok().map(time_of),
            last: last.get_timestamp("ts").ok().map(time_of),
            whole: message.is_ok_and(|message| message == INITIATING),
        })
    }

    /// The first entry of the oplog if `direction` is 1, the last one if it is -1.
    async fn oplog_end(&self, direction: i32) -> Result<Option<Document>, mongodb::error::Error> {
        self.client
            .database("local")
            .collection::<Document>("oplog.rs")
            .find_one(doc! {})
            .sort(doc! { "$natural": direction })
            .projection(doc! { "ts": 1, "o.msg": 1 })
            .max_time(self.settings.max_time)
            .await
    }
}

/// The standby, if it still renews its entry.
fn standby(able: &Document, now: DateTime) -> Option<String> {
    let is_alive = able.get_datetime("until").is_ok_and(|until| *until > now);
    able.get_str("owner").ok().filter(|_| is_alive).map(str::to_owned)
}

fn time_of(timestamp: Timestamp) -> DateTime {
    DateTime::from_millis(i64::from(timestamp.time) * 1_000)
}

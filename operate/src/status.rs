//! The overview: how many messages there are in which state, and who delivers them.

use std::{str::FromStr, time::Duration};

use document_outbox::{
    DocumentRef,
    internal::{BrokerQueue, queue_state},
};
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, RawDocumentBuf, doc},
    options::{AggregateOptions, Hint},
};
use serde::Serialize;

use crate::{
    Operator,
    catalogue::{Catalogue, WatchedCollection},
    error::OperateError,
    state::MessageState,
    streams::{OplogWindow, StreamView},
    text,
};

/// The overview.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The server's time of the overview.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub at: Option<DateTime>,
    /// The collections, with what is missing.
    pub catalogue: Catalogue,
    /// The messages, by collection, type and state.
    pub counts: Vec<Count>,
    /// The fullest outbox of each collection that has any.
    pub fullest: Vec<Fullest>,
    /// The collections that were left out, with the reason.
    pub left_out: Vec<LeftOut>,
    /// The streams of the rescuers.
    pub streams: Vec<StreamView>,
    /// The time that the oplog covers.
    pub oplog: OplogWindow,
    /// The command queue; `None` without a broker.
    pub commands: Option<CommandQueue>,
}

/// The number of messages of one type in one state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Count {
    /// The collection.
    #[serde(serialize_with = "text::as_text")]
    pub collection: Namespace,
    /// The type; `None` if it can't be read.
    #[serde(rename = "type")]
    pub message_type: Option<String>,
    /// The destination; `None` means the broker.
    pub via: Option<String>,
    /// The state.
    pub state: MessageState,
    /// The number of messages.
    pub messages: i64,
    /// When the oldest of them was sent.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub oldest: Option<DateTime>,
    /// For due messages, the earliest time since when one is due.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub due_since: Option<DateTime>,
}

/// The fullest outbox of a collection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fullest {
    /// The collection.
    #[serde(serialize_with = "text::as_text")]
    pub collection: Namespace,
    /// The document's `_id` as text.
    pub document: String,
    /// The number of elements.
    pub elements: i64,
}

/// A collection that could not be counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeftOut {
    /// The collection.
    #[serde(serialize_with = "text::as_text")]
    pub collection: Namespace,
    /// The reason.
    pub reason: String,
}

/// The queue of commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandQueue {
    /// Its name.
    pub queue: String,
    /// Its state.
    pub state: CommandQueueState,
}

/// The state of the queue of commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandQueueState {
    /// It exists.
    Exists {
        /// The number of waiting commands.
        ready: u32,
        /// The number of consumers, which are connections of dispatchers.
        consumers: u32,
    },
    /// It does not exist.
    Missing,
    /// The broker did not answer.
    Unknown(String),
}

impl Status {
    /// The time since when the longest due message is due.
    pub fn oldest_due(&self) -> Option<DateTime> {
        self.counts.iter().filter_map(|count| count.due_since).min()
    }

    /// The number of messages in a state.
    pub fn messages(&self, state: MessageState) -> i64 {
        self.counts.iter().filter(|count| count.state == state).map(|count| count.messages).sum()
    }
}

impl Operator {
    /// Reads the overview.
    pub async fn status(&self) -> Result<Status, OperateError> {
        let now = self.now().await?;
        let catalogue = self.catalogue().await?;
        let (mut counts, mut fullest, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for collection in &catalogue.collections {
            // Counting without an index would read every document.
            let Some(index) = &collection.due_index else {
                let reason = "the index outbox_available_at is missing".to_owned();
                left_out.push(LeftOut { collection: collection.namespace.clone(), reason });
                continue;
            };
            counts.extend(self.counts(collection, index, now).await?);
            fullest.extend(self.fullest(collection, index).await?);
        }

        Ok(Status {
            at: Some(now),
            counts,
            fullest,
            left_out,
            streams: self.streams().await?,
            oplog: self.oplog_window().await?,
            commands: self.command_queue().await,
            catalogue,
        })
    }

    async fn counts(
        &self,
        collection: &WatchedCollection,
        index: &str,
        now: DateTime,
    ) -> Result<Vec<Count>, OperateError> {
        let mut counts = Vec::new();
        for group in self.aggregate(collection, index, counting(now)).await? {
            counts.extend(Count::read(&collection.namespace, &group));
        }
        counts.sort_by(|one, other| (&one.message_type, one.state).cmp(&(&other.message_type, other.state)));
        Ok(counts)
    }

    async fn fullest(
        &self,
        collection: &WatchedCollection,
        index: &str,
    ) -> Result<Option<Fullest>, OperateError> {
        let size = doc! { "$cond": [{ "$isArray": "$outbox" }, { "$size": "$outbox" }, 0] };
        let pipeline = vec![
            doc! { "$match": { "outbox.id": { "$exists": true } } },
            doc! { "$project": { "elements": size } },
            doc! { "$sort": { "elements": -1 } },
            doc! { "$limit": 1 },
        ];
        let found = self.aggregate(collection, index, pipeline).await?;
        Ok(found.into_iter().next().and_then(|found| {
            let raw = RawDocumentBuf::try_from(&found).ok()?;
            let document = DocumentRef::of_stored(collection.namespace.clone(), &raw)?;
            Some(Fullest {
                collection: collection.namespace.clone(),
                document: document.subject(),
                elements: number(&found, "elements"),
            })
        }))
    }

    pub(crate) async fn aggregate(
        &self,
        collection: &WatchedCollection,
        index: &str,
        pipeline: Vec<Document>,
    ) -> Result<Vec<Document>, OperateError> {
        let mut options = AggregateOptions::default();
        options.hint = Some(Hint::Name(index.to_owned()));
        options.max_time = Some(self.settings.max_time);
        let what = || collection.namespace.to_string();

        let aggregated =
            self.collection(&collection.namespace).aggregate(pipeline).with_options(options).await;
        let mut cursor = aggregated.map_err(OperateError::reading(what()))?;
        let mut found = Vec::new();
        while cursor.advance().await.map_err(OperateError::reading(what()))? {
            found.push(cursor.deserialize_current().map_err(OperateError::reading(what()))?);
        }
        Ok(found)
    }

    /// The state of the command queue; `None` without a broker.
    pub async fn command_queue(&self) -> Option<CommandQueue> {
        let settings = self.settings.rabbitmq.as_ref()?;
        let queue = self.settings.commands_queue.clone();
        let state = match queue_state(settings, &queue).await {
            Ok(BrokerQueue::Exists { ready, consumers }) => CommandQueueState::Exists { ready, consumers },
            Ok(BrokerQueue::Missing) => CommandQueueState::Missing,
            Err(reason) => CommandQueueState::Unknown(reason),
        };
        Some(CommandQueue { queue, state })
    }
}

impl Count {
    fn read(namespace: &Namespace, group: &Document) -> Option<Self> {
        let key = group.get_document("_id").ok()?;
        let text = |name: &str| key.get_str(name).ok().map(str::to_owned);
        let state = MessageState::from_str(key.get_str("state").ok()?).ok()?;
        let date = |name: &str| group.get_datetime(name).ok().copied();
        Some(Self {
            collection: namespace.clone(),
            message_type: text("type"),
            via: text("via"),
            state,
            messages: number(group, "messages"),
            oldest: date("oldest"),
            due_since: date("due_since").filter(|_| state == MessageState::Due),
        })
    }
}

fn number(document: &Document, name: &str) -> i64 {
    match document.get(name) {
        Some(Bson::Int32(number)) => i64::from(*number),
        Some(Bson::Int64(number)) => *number,
        _ => 0,
    }
}

/// Counts elements by type and state on the server.
///
/// An element counts as unreadable if a field has a wrong type, which is the usual defect. Elements with damaged text
/// or with an id that occurs twice are found by a list with a scan.
fn counting(now: DateTime) -> Vec<Document> {
    let is_later = doc! { "$gt": [{ "$ifNull": ["$outbox.available_at", now] }, now] };
    let sent_due =
        doc! { "$lte": ["$outbox.available_at", { "$ifNull": ["$outbox.created_at", DateTime::MIN] }] };
    let is_claimed = doc! { "$eq": [{ "$type": "$outbox.claimed_by" }, "string"] };
    let has_failed = doc! { "$gt": ["$outbox.attempts", 0] };
    let state = doc! { "$switch": {
        "branches": [
            { "case": { "$not": [is_readable()] }, "then": "unreadable" },
            { "case": { "$eq": [{ "$type": "$outbox.dead_at" }, "date"] }, "then": "dead" },
            { "case": { "$not": [is_later] }, "then": "due" },
            { "case": is_claimed, "then": "claimed" },
            { "case": has_failed, "then": "retrying" },
            { "case": sent_due, "then": "due" },
        ],
        "default": "scheduled",
    } };

    let text_or_null = |field: &str| {
        doc! { "$cond": [{ "$eq": [{ "$type": field }, "string"] }, field, Bson::Null] }
    };
    let group = doc! {
        "_id": {
            "type": text_or_null("$outbox.type"),
            "via": text_or_null("$outbox.via"),
            "state": state,
        },
        "messages": { "$sum": 1 },
        "oldest": { "$min": date_or_null("$outbox.created_at") },
        "due_since": { "$min": {
            "$ifNull": [date_or_null("$outbox.available_at"), date_or_null("$outbox.created_at")],
        } },
    };
    vec![
        doc! { "$match": { "outbox.id": { "$exists": true } } },
        doc! { "$project": { "outbox": 1 } },
        doc! { "$unwind": "$outbox" },
        doc! { "$group": group },
    ]
}

fn date_or_null(field: &str) -> Document {
    doc! { "$cond": [{ "$eq": [{ "$type": field }, "date"] }, field, Bson::Null] }
}

/// The conditions on types that an entry meets.
fn is_readable() -> Document {
    let is = |field: &str, types: &[&str]| {
        let field = if field.is_empty() { "$outbox".to_owned() } else { format!("$outbox.{field}") };
        doc! { "$in": [{ "$type": field }, types] }
    };
    let numbers = ["missing", "int", "long", "double"];
    doc! { "$and": [
        is("", &["object"]),
        is("id", &["binData"]),
        is("type", &["string"]),
        doc! { "$ne": ["$outbox.type", ""] },
        is("headers", &["missing", "null", "object"]),
        is("via", &["missing", "null", "string"]),
        is("available_at", &["missing", "null", "date"]),
        is("claimed_by", &["missing", "null", "string"]),
        is("attempts", &numbers),
        is("claims", &numbers),
        is("delivered_to", &["missing", "null", "array"]),
        is("dead_at", &["missing", "null", "date"]),
    ] }
}

/// The time since when the longest due message is due.
pub(crate) fn due_for(status: &Status) -> Option<Duration> {
    Some(text::since(status.at?, status.oldest_due()?))
}

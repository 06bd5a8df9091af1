//! Chooses the reads that serve a query in one collection.

use std::time::Duration;

use document_outbox::{
    DocumentRef,
    internal::{later, read_extended_json},
};
use mongodb::{
    Namespace,
    bson::{Binary, Bson, DateTime, Document, Uuid, doc, oid::ObjectId, spec::BinarySubtype},
};
use outbox_service::Glob;
use serde::Serialize;

use super::Scan;
use crate::{
    catalogue::WatchedCollection,
    error::OperateError,
    query::{Moment, Query},
    state::MessageState,
    text,
};

/// An entry that was sent by a clock which is ahead is due although its date is in the future. The exact decision
/// follows after the read; the index is read this much further.
const CLOCKS_DIFFER: Duration = Duration::from_mins(5);

/// The messages that one read gives out. Each message belongs to exactly one part of the reads of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Living messages with a date.
    Dated,
    /// Dead messages.
    Dead,
    /// Living messages without a date, which are due.
    Undated,
    /// All messages of the documents, which are read in the order of their `_id`.
    ById,
}

impl Part {
    /// The place of the part among the reads, as in tokens.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Dated => 0,
            Self::Dead => 1,
            Self::Undated => 2,
            Self::ById => 3,
        }
    }

    /// The field by whose index the part is read.
    pub(super) fn date_field(self) -> Option<&'static str> {
        match self {
            Self::Undated | Self::ById => None,
            Self::Dated => Some("available_at"),
            Self::Dead => Some("dead_at"),
        }
    }
}

/// One read of a collection.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Read {
    pub(super) namespace: Namespace,
    pub(super) part: Part,
    /// The index by which the server has to read.
    pub(super) index: Option<String>,
    /// The limits of the date, both included.
    pub(super) from: DateTime,
    pub(super) to: DateTime,
    /// The conditions on an element that the server checks, without those on the date.
    element: Document,
    /// The conditions on the document.
    document: Document,
}

/// The index that serves a query in a collection, and the documents that are read at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanNote {
    /// The collection.
    #[serde(serialize_with = "text::as_text")]
    pub collection: Namespace,
    /// The index; `None` for a scan.
    pub index: Option<String>,
    /// The documents that are read at most.
    pub reads: String,
}

impl Read {
    /// The filter, from this date on.
    pub(super) fn filter(&self, from: DateTime) -> Document {
        let mut element = self.element.clone();
        match self.part {
            Part::Undated => {
                element.insert("available_at", Bson::Null);
                element.insert("dead_at", Bson::Null);
            }
            Part::Dated => {
                element.insert("available_at", doc! { "$gte": from, "$lte": self.to });
                element.insert("dead_at", Bson::Null);
            }
            Part::Dead => {
                element.insert("dead_at", doc! { "$gte": from, "$lte": self.to });
            }
            Part::ById => {}
        }

        let mut filter = self.document.clone();
        if !element.is_empty() {
            filter.insert("outbox", doc! { "$elemMatch": element });
        }
        filter
    }
}

/// Chooses the reads for a query.
pub(super) fn plan(
    query: &Query,
    collection: &WatchedCollection,
    scan: Scan,
    is_sharded: bool,
    now: DateTime,
) -> Result<(Vec<Read>, PlanNote), OperateError> {
    if !query.documents.is_empty() {
        return Ok(of_documents(query, collection));
    }
    if scan == Scan::Allowed {
        return Ok(of_all(query, collection));
    }

    let needs_scan = |reason: &str| OperateError::NeedsScan {
        namespace: collection.namespace.clone(),
        reason: reason.to_owned(),
        documents: collection.documents,
    };
    if is_sharded {
        return Err(needs_scan("a page of a sharded cluster can only continue by _id"));
    }
    if query.states.contains(&MessageState::Unreadable) {
        return Err(needs_scan("no index has malformed elements"));
    }
    by_index(query, collection, now).map_err(needs_scan)
}

/// The reads by the indexes, or the reason why there are none.
fn by_index(
    query: &Query,
    collection: &WatchedCollection,
    now: DateTime,
) -> Result<(Vec<Read>, PlanNote), &'static str> {
    use MessageState::{Claimed, Dead, Due, Retrying, Scheduled};

    let due = query.includes(Due);
    let later_ones = [Claimed, Retrying, Scheduled].into_iter().any(|state| query.includes(state));
    let (mut reads, mut indexes, mut described) = (Vec::new(), Vec::new(), Vec::new());
    let mut undated = None;

    if due || later_ones {
        let index = collection.due_index.clone().ok_or("the index outbox_available_at is missing")?;
        let read =
            |part, from, to| Read { from, to, ..Read::of(query, collection, part, Some(index.clone())) };
        let latest = Moment::end_of_time();
        // In the index, messages without a date share the value null with all dead ones, which the server has to skip. So
        // they are read last.
        if due {
            undated = Some(read(Part::Undated, DateTime::MIN, latest));
        }
        let from = if due { DateTime::MIN } else { now };
        let to = if later_ones { latest } else { later(now, CLOCKS_DIFFER) };
        reads.push(read(Part::Dated, from, to));
        indexes.push(index.clone());
        described.push(match (due, later_ones) {
            (true, false) => "the outboxes with a due message".to_owned(),
            (false, true) => "the outboxes with a message for later".to_owned(),
            _ => "the outboxes with a living message".to_owned(),
        });
    }
    if query.includes(Dead) {
        let index = collection.dead_index.clone().ok_or("the index outbox_dead_at is missing")?;
        let (from, to) = query.limits(now);
        reads.push(Read { from, to, ..Read::of(query, collection, Part::Dead, Some(index.clone())) });
        indexes.push(index);
        described.push(dead_ones(query, now));
    }
    reads.extend(undated);

    let note = PlanNote {
        collection: collection.namespace.clone(),
        index: Some(indexes.join(" and ")),
        reads: described.join(" and "),
    };
    Ok((reads, note))
}

fn dead_ones(query: &Query, now: DateTime) -> String {
    let since = query.since.map_or_else(String::new, |since| format!(" since {}", text::date(since.at(now))));
    let until = query.until.map_or_else(String::new, |until| format!(" until {}", text::date(until.at(now))));
    let at = if since.is_empty() && until.is_empty() { " at any time" } else { "" };
    format!("the outboxes with a message that died{at}{since}{until}")
}

fn of_documents(query: &Query, collection: &WatchedCollection) -> (Vec<Read>, PlanNote) {
    let mut named = Vec::new();
    for text in &query.documents {
        for id in ids_of(text) {
            named.push(DocumentRef::by_id(collection.namespace.clone(), id).filter());
        }
    }
    let mut read = Read::of(query, collection, Part::ById, Some("_id_".to_owned()));
    read.element = Document::new();
    read.document = doc! { "$or": named };

    let note = PlanNote {
        collection: collection.namespace.clone(),
        index: Some("_id_".to_owned()),
        reads: "the documents that the query names".to_owned(),
    };
    (vec![read], note)
}

fn of_all(query: &Query, collection: &WatchedCollection) -> (Vec<Read>, PlanNote) {
    let mut read = Read::of(query, collection, Part::ById, None);
    read.document = doc! { "outbox": { "$exists": true, "$ne": [] } };

    let note = PlanNote {
        collection: collection.namespace.clone(),
        index: None,
        reads: format!("all documents, about {}", collection.documents),
    };
    (vec![read], note)
}

impl Read {
    fn of(query: &Query, collection: &WatchedCollection, part: Part, index: Option<String>) -> Self {
        Self {
            namespace: collection.namespace.clone(),
            part,
            index,
            from: DateTime::MIN,
            to: Moment::end_of_time(),
            element: element(query),
            document: doc! { "outbox.id": { "$exists": true } },
        }
    }
}

/// The conditions that the server can check exactly, so that fewer documents are sent.
fn element(query: &Query) -> Document {
    let mut element = Document::new();
    if !query.ids.is_empty() {
        element.insert("id", doc! { "$in": query.ids.clone() });
    }
    if !query.reasons.is_empty() {
        element.insert("dead_reason", doc! { "$in": query.reasons.clone() });
    }
    if let Some(types) = types(&query.types) {
        element.insert("type", types);
    }
    if let Some(range) = query.attempts
        && range.least > 0
    {
        element.insert("attempts", doc! { "$gte": range.least, "$lte": range.most });
    }
    element
}

fn types(globs: &[Glob]) -> Option<Document> {
    if globs.is_empty() {
        return None;
    }
    let exact: Vec<&str> = globs.iter().filter_map(Glob::exact).collect();
    if exact.len() == globs.len() {
        return Some(doc! { "$in": exact });
    }
    let patterns: Vec<String> = globs.iter().map(|glob| format!("(?:{})", glob.regex())).collect();
    Some(doc! { "$regex": patterns.join("|") })
}

/// The values that an `_id` written as text can mean.
pub(crate) fn ids_of(text: &str) -> Vec<Bson> {
    let mut ids = vec![Bson::from(text)];
    if let Ok(id) = ObjectId::parse_str(text) {
        ids.push(id.into());
    }
    // The server compares numbers by value, whatever their type.
    if let Ok(number) = text.parse::<i64>() {
        ids.push(number.into());
    }
    if let Ok(uuid) = Uuid::parse_str(text) {
        ids.push(uuid.into());
        ids.push(Binary { subtype: BinarySubtype::Generic, bytes: uuid.bytes().to_vec() }.into());
    }
    if text.starts_with(['{', '"'])
        && let Some(value) = serde_json::from_str(text).ok().and_then(read_extended_json)
    {
        ids.push(value);
    }
    ids
}

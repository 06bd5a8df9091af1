//! Groups failures: dead messages, and living ones that have failed, by type, reason and error.
//!
//! Errors differ in ids, numbers and quoted names, so they are compared [without them](normalised).
//!
//! # Guarantees
//! Memory is bounded: the messages are streamed without their payloads, and the number of groups is limited. Failures
//! beyond the limit are counted.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, btree_map::Entry},
};

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, RawDocument, Uuid, doc},
    options::{AggregateOptions, Hint},
};
use serde::Serialize;

use crate::{Operator, Query, catalogue::WatchedCollection, error::OperateError, state::MessageState, text};

/// The maximum number of groups.
const MOST_GROUPS: usize = 2_000;
/// The longest error that is compared.
const LONGEST_ERROR: usize = 200;
/// The number of messages in one reply of the server.
const BATCH: u32 = 5_000;

/// The failures of a system.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Failures {
    /// The groups, the largest first.
    pub groups: Vec<Group>,
    /// The number of failures that belong to none of the groups, because there were too many groups.
    pub others: u64,
    /// The collections that were left out, because an index is missing.
    pub left_out: Vec<String>,
}

/// Failures with the same type, reason and error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// `dead`, or `retrying` for living messages with failed attempts.
    pub state: MessageState,
    /// The type.
    #[serde(rename = "type")]
    pub message_type: String,
    /// The reason of dead messages.
    pub reason: Option<String>,
    /// The error without ids, numbers and quoted text.
    pub error: String,
    /// The number of messages.
    pub messages: u64,
    /// When the first of them died; of living ones, when the first was sent.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub first: Option<DateTime>,
    /// The last such date.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub last: Option<DateTime>,
    /// One of the messages.
    pub sample: Sample,
}

/// A message of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The collection.
    #[serde(serialize_with = "text::as_text")]
    pub collection: Namespace,
    /// The document's `_id` as text.
    pub document: String,
    /// The message's id.
    pub id: Option<Uuid>,
    /// Its whole error.
    pub error: Option<String>,
}

/// What the messages of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    state: MessageState,
    message_type: String,
    reason: Option<String>,
    error: String,
}

/// A failed message, as the server sends it.
struct Failure {
    key: GroupKey,
    at: Option<DateTime>,
    sample: Sample,
}

#[derive(Default)]
struct Grouping {
    groups: BTreeMap<GroupKey, Group>,
    others: u64,
}

impl Operator {
    /// Groups the failures in the collections of a query. Of the query's conditions, only those on collection, type and
    /// time are used, and `state:dead` or `state:retrying`.
    pub async fn groups(&self, query: &Query) -> Result<Failures, OperateError> {
        let now = self.now().await?;
        let mut grouping = Grouping::default();
        let mut left_out = Vec::new();
        for collection in self.collections_of(query).await? {
            let reads = [
                (MessageState::Dead, collection.dead_index.clone()),
                (MessageState::Retrying, collection.due_index.clone()),
            ];
            for (state, index) in reads {
                if !query.states.is_empty() && !query.states.contains(&state) {
                    continue;
                }
                match index {
                    Some(index) => self.group(&collection, state, index, query, now, &mut grouping).await?,
                    None => left_out.push(format!("{} ({state})", collection.namespace)),
                }
            }
        }

        let mut groups: Vec<Group> = grouping.groups.into_values().collect();
        groups.sort_by_key(|group| Reverse(group.messages));
        Ok(Failures { groups, others: grouping.others, left_out })
    }

    async fn group(
        &self,
        collection: &WatchedCollection,
        state: MessageState,
        index: String,
        query: &Query,
        now: DateTime,
        grouping: &mut Grouping,
    ) -> Result<(), OperateError> {
        let mut options = AggregateOptions::default();
        options.hint = Some(Hint::Name(index));
        options.max_time = Some(self.settings.max_time);
        options.batch_size = Some(BATCH);
        let what = || collection.namespace.to_string();

        let pipeline = failures(state, query, now);
        let aggregated =
            self.collection(&collection.namespace).aggregate(pipeline).with_options(options).await;
        let mut cursor = aggregated.map_err(OperateError::reading(what()))?;
        while cursor.advance().await.map_err(OperateError::reading(what()))? {
            if let Some(failure) = Failure::read(&collection.namespace, state, cursor.current())
                && query.takes(&failure, now)
            {
                grouping.add(failure);
            }
        }
        Ok(())
    }
}

impl Query {
    fn takes(&self, failure: &Failure, now: DateTime) -> bool {
        let is_of_type =
            self.types.is_empty() || self.types.iter().any(|types| types.matches(&failure.key.message_type));
        let (since, until) = self.limits(now);
        let is_limited = self.since.is_some() || self.until.is_some();
        let is_in_time = failure.at.map_or(!is_limited, |at| (since..=until).contains(&at));
        is_of_type && is_in_time
    }
}

/// Reads failed messages without their payloads.
fn failures(state: MessageState, query: &Query, now: DateTime) -> Vec<Document> {
    let (since, until) = query.limits(now);
    let (documents, entries) = if state == MessageState::Dead {
        let died = doc! { "outbox.dead_at": { "$gte": since, "$lte": until } };
        // The conditions on the path could be met by two elements, so the server needs one range.
        (doc! { "outbox": { "$elemMatch": { "dead_at": { "$gte": since, "$lte": until } } } }, died)
    } else {
        let failed = doc! { "outbox.attempts": { "$gt": 0 }, "outbox.dead_at": Bson::Null };
        (
            doc! {
                "outbox.id": { "$exists": true },
                "outbox": { "$elemMatch": { "attempts": { "$gt": 0 }, "dead_at": Bson::Null } },
            },
            failed,
        )
    };

    let field = |name: &str| Bson::from(format!("$outbox.{name}"));
    vec![
        doc! { "$match": documents },
        doc! { "$project": {
            "outbox.id": 1, "outbox.type": 1, "outbox.dead_at": 1, "outbox.dead_reason": 1, "outbox.last_error": 1,
            "outbox.attempts": 1, "outbox.created_at": 1,
        } },
        doc! { "$unwind": "$outbox" },
        doc! { "$match": entries },
        doc! { "$project": {
            "id": field("id"), "type": field("type"), "reason": field("dead_reason"), "error": field("last_error"),
            "dead_at": field("dead_at"), "created_at": field("created_at"),
        } },
    ]
}

impl Failure {
    fn read(namespace: &Namespace, state: MessageState, found: &RawDocument) -> Option<Self> {
        let text = |name: &str| found.get_str(name).ok().map(str::to_owned);
        let date = |name: &str| found.get_datetime(name).ok();
        let document = DocumentRef::of_stored(namespace.clone(), found)?;
        let id = found.get_binary("id").ok().and_then(|id| id.bytes.try_into().ok().map(Uuid::from_bytes));
        let error = text("error");

        Some(Self {
            key: GroupKey {
                state,
                message_type: text("type")?,
                reason: text("reason"),
                error: error.as_deref().map(normalised).unwrap_or_default(),
            },
            at: date("dead_at").or_else(|| date("created_at")),
            sample: Sample { collection: namespace.clone(), document: document.subject(), id, error },
        })
    }
}

impl Grouping {
    fn add(&mut self, failure: Failure) {
        let Failure { key, at, sample } = failure;
        let is_full = self.groups.len() >= MOST_GROUPS;
        match self.groups.entry(key) {
            Entry::Occupied(mut known) => known.get_mut().add(at),
            Entry::Vacant(_) if is_full => self.others += 1,
            Entry::Vacant(free) => {
                let key = free.key().clone();
                free.insert(Group {
                    state: key.state,
                    message_type: key.message_type,
                    reason: key.reason,
                    error: key.error,
                    messages: 1,
                    first: at,
                    last: at,
                    sample,
                });
            }
        }
    }
}

impl Group {
    fn add(&mut self, at: Option<DateTime>) {
        self.messages += 1;
        self.first = self.first.into_iter().chain(at).min();
        self.last = self.last.into_iter().chain(at).max();
    }
}

/// An error without the parts in which equal failures differ: ids become `<id>`, numbers become `#`, and quoted text
/// becomes `…`. An error of several lines is cut after the first one.
pub fn normalised(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    let line = &line[..line.floor_char_boundary(LONGEST_ERROR)];
    let mut normal = String::with_capacity(line.len());
    let mut rest = line;
    let mut before = ' ';

    while let Some(c) = rest.chars().next() {
        if let Some(length) = quoted(rest, before) {
            normal.extend([c, '…', c]);
            before = c;
            rest = &rest[length..];
        } else if is_of_word(c) {
            let length = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
            normal.push_str(&word(&rest[..length]));
            before = 'w';
            rest = &rest[length..];
        } else {
            normal.push(c);
            before = c;
            rest = &rest[c.len_utf8()..];
        }
    }
    normal
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '-' || c == '_'
}

/// The length of the quoted text at the start, with its quotes. An apostrophe inside a word is not a quote.
fn quoted(text: &str, before: char) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\'' | '`'))?;
    if quote == '\'' && before == 'w' {
        return None;
    }
    let end = text[1..].find(quote)?;
    Some(end + 2)
}

/// A word without its numbers, or the mark for an id.
fn word(word: &str) -> String {
    let has_digit = word.bytes().any(|byte| byte.is_ascii_digit());
    let is_hex = word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if has_digit && is_hex && word.len() >= 12 {
        return "<id>".to_owned();
    }

    let mut normal = String::with_capacity(word.len());
    for c in word.chars() {
        if !c.is_numeric() {
            normal.push(c);
        } else if !normal.ends_with('#') {
            normal.push('#');
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_failures_have_one_normal_form() {
        for (error, normal) in [
            ("timed out after 250 ms", "timed out after # ms"),
            ("order 018bcfe5-6878-7e5e-9d8b-1f5a4d6a9c11 is gone", "order <id> is gone"),
            ("no document 65f0c0ffee65f0c0ffee1234", "no document <id>"),
            (
                "unroutable: no queue is bound for `order.paid` at exchange `shop` (312 NO_ROUTE)",
                "unroutable: no queue is bound for `…` at exchange `…` (# NO_ROUTE)",
            ),
            ("can't reach 'billing' on port 8080", "can't reach '…' on port #"),
            ("first line\nsecond line", "first line"),
            ("HTTP/1.1 503 from eu-west-1", "HTTP/#.# # from eu-west-#"),
        ] {
            assert_eq!(normalised(error), normal);
        }
    }

    proptest! {
        #[test]
        fn a_normal_form_has_no_digit_and_stays(error in "\\PC{0,300}") {
            let normal = normalised(&error);
            prop_assert!(!normal.contains(|c: char| c.is_ascii_digit()), "{}", normal);
            prop_assert!(normal.chars().count() <= LONGEST_ERROR * 2);
        }
    }
}

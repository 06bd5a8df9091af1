//! Lists the messages that meet a query, one page at a time.
//!
//! # Flow
//! For each collection, `plan` chooses the reads: by the index for due messages, by the index for dead messages, by
//! `_id`, or a scan. Each read has one cursor. `reader` reads its documents one after the other, and gives out the
//! messages that meet the query.
//!
//! # Order
//! By collection; in it, living messages by the time at which they are due, then dead ones by the time at which they
//! died, then living ones without a date, which only other programs write. Messages of one document stay together, in the order of the outbox. A scan goes by `_id`.
//!
//! # Guarantees
//! - A page continues exactly after the last message of the previous page, by values and not by counting. So a message
//!   that stays in its place in the index is listed exactly once, whatever happens to others.
//! - Memory is bounded by one reply of the server.
//!
//! # Caveats
//! - A message whose date changes between two pages (it was claimed, it failed, it was replayed) can be listed twice or
//!   not at all.
//! - Malformed elements are found by a scan, or in a document that the query names.

mod plan;
mod reader;
mod token;

use document_outbox::{
    DocumentRef,
    internal::{Entry, Slot},
};
use mongodb::{
    Namespace,
    bson::{DateTime, Uuid},
};
use serde::Serialize;

pub use plan::PlanNote;
pub(crate) use plan::ids_of;
pub use reader::Lister;

use crate::{Operator, error::OperateError, query::Query, state::MessageState, text};

/// Which messages to list.
#[derive(Debug, Clone)]
pub struct ListRequest {
    /// The conditions.
    pub query: Query,
    /// The maximum number of messages.
    pub limit: usize,
    /// The token of the previous page.
    pub after: Option<String>,
    /// Whether a whole collection may be read.
    pub scan: Scan,
}

/// Whether a whole collection may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scan {
    /// Only by an index.
    #[default]
    Never,
    /// All documents are read. This also finds malformed elements.
    Allowed,
}

/// One page of messages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Page {
    /// The messages.
    pub rows: Vec<Row>,
    /// The token with which the next page is read; `None` if there are no more messages.
    pub next: Option<String>,
    /// What served the query.
    pub plans: Vec<PlanNote>,
}

/// A message in a list. It has no payload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The collection.
    #[serde(serialize_with = "text::as_text")]
    pub collection: Namespace,
    /// The document's `_id` as text.
    pub document: String,
    /// The place among the messages of the document, from 1.
    pub place: usize,
    /// The state.
    pub state: MessageState,
    /// The id; `None` if the element is malformed. The same applies to the following fields.
    pub id: Option<Uuid>,
    /// The type.
    #[serde(rename = "type")]
    pub message_type: Option<String>,
    /// The destination; `None` means the broker.
    pub via: Option<String>,
    /// When it was sent.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub created_at: Option<DateTime>,
    /// The time before which only the claim's holder may deliver it.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub available_at: Option<DateTime>,
    /// The claim.
    pub claimed_by: Option<String>,
    /// The number of failed deliveries.
    pub attempts: i64,
    /// The number of claims of workers. A failed delivery counts as a claim and as an attempt, so that only the claims
    /// above the attempts ended without an outcome.
    pub claims: i64,
    /// The error of the last failed delivery.
    pub last_error: Option<String>,
    /// When it died.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub dead_at: Option<DateTime>,
    /// Why it died.
    pub dead_reason: Option<String>,
    /// Why the element can't be read.
    pub flaw: Option<String>,
}

impl Row {
    /// The number of claims that ended without an outcome.
    pub fn lost_claims(&self) -> i64 {
        (self.claims - self.attempts).max(0)
    }

    /// The row of an element of an outbox; `place` counts from 1.
    pub fn of(document: &DocumentRef, place: usize, slot: &Slot, now: DateTime) -> Self {
        match slot {
            Slot::Entry(entry) => Self::of_entry(document, place, entry, now),
            Slot::Unreadable(flaw) => Self::of_flaw(document, place, flaw.reason.clone()),
        }
    }

    fn of_entry(document: &DocumentRef, place: usize, entry: &Entry, now: DateTime) -> Self {
        Self {
            state: MessageState::of(entry, now),
            id: Some(entry.id),
            message_type: Some(entry.message_type.clone()),
            via: entry.via.clone(),
            created_at: entry.created_at,
            available_at: entry.available_at,
            claimed_by: entry.claimed_by.clone(),
            attempts: entry.attempts,
            claims: entry.claims,
            last_error: entry.last_error.clone(),
            dead_at: entry.dead.as_ref().map(|dead| dead.at),
            dead_reason: entry.dead.as_ref().map(|dead| dead.reason.clone()),
            flaw: None,
            ..Self::of_flaw(document, place, String::new())
        }
    }

    pub(crate) fn of_flaw(document: &DocumentRef, place: usize, flaw: String) -> Self {
        Self {
            collection: document.namespace.clone(),
            document: document.subject(),
            place,
            state: MessageState::Unreadable,
            id: None,
            message_type: None,
            via: None,
            created_at: None,
            available_at: None,
            claimed_by: None,
            attempts: 0,
            claims: 0,
            last_error: None,
            dead_at: None,
            dead_reason: None,
            flaw: Some(flaw),
        }
    }
}

impl Operator {
    /// Lists one page of messages.
    pub async fn list(&self, request: ListRequest) -> Result<Page, OperateError> {
        let ListRequest { query, limit, after, scan } = request;
        let mut lister = self.lister(query, after.as_deref(), scan).await?;

        let mut rows = Vec::new();
        while rows.len() < limit {
            match lister.next().await? {
                Some(row) => rows.push(row),
                None => break,
            }
        }

        let is_full = !rows.is_empty() && rows.len() == limit;
        let token = lister.token();
        let has_more = is_full && lister.next().await?.is_some();
        let next = token.filter(|_| has_more);
        Ok(Page { rows, next, plans: lister.plans().to_vec() })
    }
}

//! The query language of operators.
//!
//! ```text
//! type:order.*  state:dead,retrying  error:"timed out"  since:24h  attempts:>3  header.tenant:south
//! ```
//!
//! A query is a list of conditions, separated by blanks; a message has to meet all of them.
//!
//! | condition | a message meets it if |
//! |---|---|
//! | `type:order.placed`, `type:order.*` | its type is one of these; `*` matches any characters |
//! | `state:dead` | its [state](crate::MessageState) is one of these |
//! | `reason:crashed` | it is dead for one of these reasons |
//! | `error:"timed out"` | its last error contains the text, in upper or lower case |
//! | `doc:o-1` | its document's `_id` is one of these: text, a number, an `ObjectId`, a UUID, or extended JSON |
//! | `id:0190a0a1-…` | its id is one of these |
//! | `collection:shop.orders` | its collection matches one of these patterns |
//! | `since:24h`, `until:2026-01-31T12:00:00Z` | it died after, or before, this time; a living one was sent after, or before, it |
//! | `attempts:3`, `attempts:>3`, `attempts:2..5` | its number of failed attempts is in the range |
//! | `header.tenant:south` | its header has one of these values |
//!
//! Several values are separated by commas, and the message has to match one of them. Each field appears at most once.
//! Text with blanks, commas or quotes is quoted: `error:"no route"`, where `\"` is a quote and `\\` a backslash.

mod display;
mod matches;
mod parse;
#[cfg(test)]
mod tests;

use std::time::Duration;

use document_outbox::internal::later;
use mongodb::bson::{DateTime, Uuid};
use outbox_service::{Glob, NamespacePattern};

pub use parse::QueryError;

use crate::state::MessageState;

/// A parsed query. The empty query matches every message.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Query {
    /// The types, of which a message has one; empty for all. The same rule applies to the other lists.
    pub types: Vec<Glob>,
    /// The states.
    pub states: Vec<MessageState>,
    /// The reasons of dead messages.
    pub reasons: Vec<String>,
    /// Texts, one of which the last error contains.
    pub errors: Vec<String>,
    /// The documents, as given.
    pub documents: Vec<String>,
    /// The ids.
    pub ids: Vec<Uuid>,
    /// The collections.
    pub collections: Vec<NamespacePattern>,
    /// The earliest time.
    pub since: Option<Moment>,
    /// The latest time.
    pub until: Option<Moment>,
    /// The number of failed attempts.
    pub attempts: Option<Attempts>,
    /// Names of headers, each with its possible values.
    pub headers: Vec<(String, Vec<String>)>,
}

/// A moment in a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Moment {
    /// This time.
    At(DateTime),
    /// This long before now.
    Ago(Duration),
}

/// A range of numbers of failed attempts; both ends are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// The least number.
    pub least: i64,
    /// The greatest number.
    pub most: i64,
}

impl Moment {
    /// The time that is meant, given the server's time.
    pub fn at(self, now: DateTime) -> DateTime {
        match self {
            Self::At(date) => date,
            Self::Ago(ago) => {
                let millis = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
                DateTime::from_millis(now.timestamp_millis().saturating_sub(millis))
            }
        }
    }

    /// The end of a limit that is not given.
    pub(crate) fn end_of_time() -> DateTime {
        later(DateTime::from_millis(0), Duration::from_hours(24 * 365 * 8000))
    }
}

impl Query {
    /// Whether messages in this state can match.
    pub fn includes(&self, state: MessageState) -> bool {
        let is_possible = match state {
            MessageState::Dead => true,
            // A condition on a field that such an element doesn't have, or that can't be read.
            MessageState::Unreadable => !self.reads_entries(),
            _ => self.reasons.is_empty(),
        };
        is_possible && (self.states.is_empty() || self.states.contains(&state))
    }

    /// Whether the query has a condition on the fields of an entry.
    fn reads_entries(&self) -> bool {
        !self.types.is_empty()
            || !self.reasons.is_empty()
            || !self.errors.is_empty()
            || !self.ids.is_empty()
            || self.since.is_some()
            || self.until.is_some()
            || self.attempts.is_some()
            || !self.headers.is_empty()
    }

    /// Whether the query has no condition.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

//! Acts on messages: replay, discard, restore, kill and release, each with a record in the audit trail.
//!
//! # Flow
//! [`preview`](Operator::preview) selects the messages that an act takes, and counts them. [`execute`](Operator::execute)
//! selects again, and then writes for each message, with the majority's acknowledgement:
//!
//! 1. the *intent* in the collection `audit`: who, when, from where, why, and the message as it was shown;
//! 2. for a discard, the exact entry in the collection `archive`;
//! 3. the act: one update of one document, which only happens if the message is still as it was shown;
//! 4. the *outcome* in the collection `audit`.
//!
//! # If the tool dies
//! | after | state | the next run |
//! |---|---|---|
//! | the intent | the message is unchanged | repeats the act with a new intent; [`settle`](Operator::settle) records `not_done` for the old one |
//! | the archive | the message is in the outbox and in the archive | repeats the discard, with a new record in the archive; [`restore`](Operator::restore) takes no record whose discard is not `done` |
//! | the act | the act is done, and its outcome is missing | does not find the message as it was shown; `settle` records `done` if the evidence is that of this act, otherwise `unknown` |
//!
//! So no act is without an intent, and no act happens twice.
//!
//! # Guarantees
//! - Only valid transitions: a replay and a discard take dead messages, a kill takes living ones without a claim,
//!   a release takes claimed ones. A restore takes records whose discard is done, and that no later act has used.
//! - The messages of one document are acted on in the order of its outbox.
//! - `audit` and `archive` are only appended to. The role `outboxOperator` has no other rights on them.
//! - Dates are the server's.
//!
//! # Caveats
//! - A replayed message keeps its id. A receiver whose inbox still has that id ignores it; one whose record has expired
//!   applies it again.
//! - A release of a live claim delivers the message twice if the claim's holder still works.

mod archive;
mod audit;
mod concern;
mod execute;
mod restore;
mod reveal;
mod select;
mod settle;
mod trail;
mod transition;

use std::fmt;

use document_outbox::DocumentRef;
use mongodb::bson::Uuid;
use serde::Serialize;

pub use archive::ArchivedMessage;
pub use audit::{AuditKind, AuditRecord, AuditRequest, Author};
pub use select::{Preview, Skipped};

#[allow(unused_imports, reason = "for links in the documentation")]
use crate::Operator;
use crate::{
    Query,
    list::{Row, Scan},
    state::MessageState,
};

/// The number of messages that an act takes at most, unless a higher ceiling is given.
pub const DEFAULT_CEILING: usize = 1_000;
/// The highest ceiling.
pub const HIGHEST_CEILING: usize = 100_000;

/// What an operator does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Act {
    /// A dead message is due again, without attempts and claims.
    Replay,
    /// A dead message leaves its outbox; the archive keeps it.
    Discard,
    /// A discarded message returns to its place in the outbox, dead.
    Restore,
    /// A living message without a claim is marked dead, for the reason `operator`.
    Kill,
    /// A claim ends now, so that another process can take the message.
    Release,
    /// A payload is shown completely.
    Reveal,
}

impl Act {
    /// The name, as in the audit trail.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The states that a message can have before this act.
    pub(crate) fn takes(self) -> &'static [MessageState] {
        use MessageState::{Claimed, Dead, Due, Retrying, Scheduled};
        match self {
            Self::Replay | Self::Discard => &[Dead],
            Self::Kill => &[Due, Retrying, Scheduled],
            Self::Release => &[Claimed],
            Self::Restore | Self::Reveal => &[],
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An act on the messages that meet a query.
#[derive(Debug, Clone)]
pub struct ActRequest {
    /// The act.
    pub act: Act,
    /// The messages. An empty query is refused.
    pub query: Query,
    /// Whether a whole collection may be read to find them.
    pub scan: Scan,
    /// The maximum number of messages; with more, none is changed.
    pub ceiling: usize,
    /// The number of messages that a preview has shown. If it has changed, no message is changed.
    pub expected: Option<usize>,
    /// Whether a claim that has not ended may be released.
    pub force: Force,
}

/// Whether an act that can deliver a message twice is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Force {
    /// It is refused.
    #[default]
    Never,
    /// The operator accepts it.
    Accepted,
}

impl ActRequest {
    /// An act with the default ceiling, without a scan.
    pub fn new(act: Act, query: Query) -> Self {
        Self { act, query, scan: Scan::Never, ceiling: DEFAULT_CEILING, expected: None, force: Force::Never }
    }
}

/// The result for one message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Acted {
    /// The message as it was shown before the act.
    pub shown: Row,
    /// The result.
    pub outcome: ActOutcome,
}

/// The result of an act on one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "detail")]
pub enum ActOutcome {
    /// It is done.
    Done,
    /// The message is no longer as it was shown, or no longer there. It was left unchanged.
    Changed,
    /// It was not done, for this reason.
    Failed(String),
    /// It may have been done: the server did not answer.
    Unknown(String),
}

impl ActOutcome {
    /// The name, as in the audit trail.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Changed => "changed",
            Self::Failed(_) => "failed",
            Self::Unknown(_) => "unknown",
        }
    }

    /// The reason of a failure.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Done | Self::Changed => None,
            Self::Failed(reason) | Self::Unknown(reason) => Some(reason),
        }
    }
}

/// The sum of an act on several messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActSum {
    /// The id that the records of the audit trail share.
    pub operation: Uuid,
    /// The number of messages for which it is done.
    pub done: usize,
    /// The number of messages that had changed.
    pub changed: usize,
    /// The number of failures.
    pub failed: usize,
    /// The number of messages that were not tried, because too many failed in a row, or because of the error.
    pub left: usize,
    /// What ended the act before its end, in words.
    pub error: Option<String>,
}

/// A message to act on.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) document: DocumentRef,
    pub(crate) shown: Row,
}

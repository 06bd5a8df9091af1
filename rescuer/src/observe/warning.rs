//! Warnings about settings that work badly or will soon fail, with the numbers that show this.

use std::{fmt, time::Duration};

use mongodb::Namespace;
use outbox_service::{NamespacePattern, written};

/// A condition that an operator should check. Each warning is reported at most once an hour.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// The oplog covers less than twice the delay.
    OplogShort {
        /// The stream's delay.
        delay: Duration,
        /// The time that the oplog covers.
        window: Duration,
    },
    /// The saved position is near the end of the oplog.
    PositionFarBack {
        /// How far the position is behind the newest change.
        behind: Duration,
        /// The time that the oplog covers.
        window: Duration,
    },
    /// The time that the oplog covers is unknown.
    OplogUnknown {
        /// The server's error.
        error: String,
    },
    /// Many messages were still undelivered when they were as old as the delay.
    InlineSlow {
        /// The number of changed documents that still had undelivered messages.
        undelivered: usize,
        /// The number of changed documents.
        of: usize,
        /// The stream's delay.
        delay: Duration,
    },
    /// The claim of an inline dispatcher lasts longer than the delay.
    InlineLeaseLong {
        /// The duration of the claim, measured from the creation of the message.
        lease: Duration,
        /// The stream's delay.
        delay: Duration,
    },
    /// After a request to stop this process, the process's supervisor waits longer than the lease
    /// lasts.
    GraceLong {
        /// How long the supervisor waits.
        grace: Duration,
        /// How long the lease lasts.
        lease: Duration,
    },
    /// A pattern watches no collection.
    Unwatchable {
        /// The pattern of `watch`.
        pattern: NamespacePattern,
        /// The reason.
        why: Unwatchable,
    },
    /// The server deletes documents of a watched collection, even with messages in their outboxes.
    DocumentsExpire {
        /// The collection.
        namespace: Namespace,
        /// How the server deletes the documents.
        expiry: Expiry,
    },
}

/// Why a pattern watches no collection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unwatchable {
    /// No collection has a name that matches.
    Missing {
        /// A question that names a similar existing name, in the form ` (did you mean …?)`. Empty if there is
        /// no such name.
        hint: String,
    },
    /// The pattern names a view; writes go to another collection.
    View,
    /// The pattern names a time series: its measurements can't be updated, and it has no change stream.
    TimeSeries,
}

/// How the server deletes documents by itself, even with messages in their outboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// An index with `expireAfterSeconds`; contains the name of the index.
    TtlIndex(String),
    /// The setting `expireAfterSeconds` of a clustered collection.
    Clustered,
    /// New documents of a capped collection replace the oldest.
    Capped,
}

impl Warning {
    /// A key that is equal for warnings about the same subject, so that no warning is repeated too soon.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::OplogShort { .. } => "oplog_short".into(),
            Self::PositionFarBack { .. } => "position_far_back".into(),
            Self::OplogUnknown { .. } => "oplog_unknown".into(),
            Self::InlineSlow { .. } => "inline_slow".into(),
            Self::InlineLeaseLong { .. } => "inline_lease_long".into(),
            Self::GraceLong { .. } => "grace_long".into(),
            Self::Unwatchable { pattern, .. } => format!("unwatchable {pattern}"),
            Self::DocumentsExpire { namespace, .. } => format!("documents_expire {namespace}"),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Each text gives the numbers and the remedy.
        match self {
            Self::OplogShort { delay, window } => write!(
                f,
                "the oplog covers {}, and the delay is {}; the oplog should cover more than twice the \
                 delay, and more than the longest outage of the rescuer: increase oplogMinRetentionHours or \
                 the oplog's size, or shorten the delay",
                in_seconds(*window),
                written(*delay)
            ),
            Self::PositionFarBack { behind, window } => write!(
                f,
                "the saved position is {} old, and the oplog covers only {}, so the stream may soon be \
                 unable to resume; enlarge the oplog, and find out what blocks the stream",
                in_seconds(*behind),
                in_seconds(*window)
            ),
            Self::OplogUnknown { error } => write!(
                f,
                "could not read how much time the oplog covers ({error}); grant this user the action find \
                 on the collection local.oplog.rs"
            ),
            Self::InlineSlow { undelivered, of, delay } => write!(
                f,
                "{undelivered} of the last {of} changed documents still had undelivered messages {} after \
                 the change; inline dispatch is off, slow or failing; if it is slow, lengthen the delay",
                written(*delay)
            ),
            Self::InlineLeaseLong { lease, delay } => write!(
                f,
                "an inline claim lasts {}, which is longer than the delay of {}; if the claiming process \
                 dies, the message waits until the claim expires and a sweep follows; shorten the \
                 applications' inline lease, or lengthen the delay",
                in_seconds(*lease),
                written(*delay)
            ),
            Self::GraceLong { grace, lease } => write!(
                f,
                "shutdown_grace ({}) is longer than lease ({}); a rescuer that hangs during shutdown may \
                 block its streams for other rescuers that long; shorten shutdown_grace or lengthen lease",
                written(*grace),
                written(*lease)
            ),
            Self::Unwatchable { pattern, why } => {
                write!(f, "watch has {pattern}, which {why}; until then this pattern finds no messages")
            }
            Self::DocumentsExpire { namespace, expiry } => write!(
                f,
                "{namespace} loses documents by {expiry}, and with them undelivered and dead messages. Let \
                 only documents with an empty outbox expire: create the TTL index with partialFilterExpression \
                 {{outbox: []}}, and keep outboxes out of capped collections"
            ),
        }
    }
}

/// Formats a measured time without fractions of a second.
fn in_seconds(time: Duration) -> String {
    written(Duration::from_secs(time.as_secs()))
}

impl fmt::Display for Unwatchable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { hint } => {
                write!(f, "matches no collection{hint}; correct it, or create the collection")
            }
            Self::View => f.write_str("is a view; watch the collection that it reads"),
            Self::TimeSeries => {
                f.write_str("is a time series, which has no change stream; watch a plain collection")
            }
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TtlIndex(name) => write!(f, "its TTL index {name:?}"),
            Self::Clustered => f.write_str("its expireAfterSeconds"),
            Self::Capped => f.write_str("being capped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_names_its_numbers() {
        let (minute, hour) = (Duration::from_mins(1), Duration::from_hours(1));
        for (warning, numbers) in [
            (Warning::OplogShort { delay: hour, window: minute }, ["1h", "1m"]),
            (Warning::PositionFarBack { behind: minute, window: hour }, ["1m", "1h"]),
            (Warning::InlineSlow { undelivered: 11, of: 200, delay: minute }, ["11 of the last 200", "1m"]),
            (Warning::InlineLeaseLong { lease: hour, delay: minute }, ["1h", "1m"]),
            (Warning::GraceLong { grace: hour, lease: minute }, ["1h", "1m"]),
        ] {
            let text = warning.to_string();
            assert!(numbers.iter().all(|number| text.contains(number)), "{text}");
        }
    }
}

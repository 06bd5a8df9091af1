//! Settings that work badly or will soon fail, with the numbers that show it.

use std::{fmt, time::Duration};

use mongodb::Namespace;
use outbox_service::{NamespacePattern, written};

/// Something that an operator should check. Each is reported once an hour at most.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// The oplog reaches back less than twice the delay.
    OplogShort {
        /// The stream's delay.
        delay: Duration,
        /// How far the oplog reaches back.
        window: Duration,
    },
    /// The saved position is near the end of the oplog.
    PositionFarBack {
        /// How far the position is behind the newest change.
        behind: Duration,
        /// How far the oplog reaches back.
        window: Duration,
    },
    /// The length of the oplog is unknown.
    OplogUnknown {
        /// What the server said.
        error: String,
    },
    /// Many messages are still undelivered when they are as old as the delay.
    InlineSlow {
        /// How many of the changed documents were still undelivered.
        undelivered: usize,
        /// How many changed.
        of: usize,
        /// The stream's delay.
        delay: Duration,
    },
    /// An inline dispatcher's claim lasts for longer than the delay.
    InlineLeaseLong {
        /// How long it lasts, from the creation of the message.
        lease: Duration,
        /// The stream's delay.
        delay: Duration,
    },
    /// The supervisor that stops this process waits for longer than its lease lasts.
    GraceLong {
        /// How long it waits.
        grace: Duration,
        /// How long the lease lasts.
        lease: Duration,
    },
    /// No collection is watched by a pattern.
    Unwatchable {
        /// The pattern of `watch`.
        pattern: NamespacePattern,
        /// Why.
        why: Unwatchable,
    },
    /// The server deletes documents of a watched collection, even with messages in their outboxes.
    DocumentsExpire {
        /// The collection.
        namespace: Namespace,
        /// How it does.
        expiry: Expiry,
    },
}

/// Why no collection is watched by a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unwatchable {
    /// No collection has such a name.
    Missing {
        /// A similar existing name, as ` (did you mean …?)`, or empty.
        hint: String,
    },
    /// It is a view: writes go to another collection.
    View,
    /// It is a time series: its measurements take no updates, and it has no change stream.
    TimeSeries,
}

/// How the server deletes documents by itself, even with messages in their outboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// By an index with `expireAfterSeconds`, of this name.
    TtlIndex(String),
    /// By `expireAfterSeconds` of a clustered collection.
    Clustered,
    /// New documents of a capped collection replace the oldest.
    Capped,
}

impl Warning {
    /// Equal for warnings about the same subject, so that none is repeated too soon.
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
        // Each names its numbers, and says what to do.
        match self {
            Self::OplogShort { delay, window } => write!(
                f,
                "the oplog reaches back {} and the delay is {}: keep it above twice the delay, and above \
                 the longest outage of the rescuer, with a larger oplog (oplogMinRetentionHours) or a shorter delay",
                in_seconds(*window),
                written(*delay)
            ),
            Self::PositionFarBack { behind, window } => write!(
                f,
                "the saved position is {} behind and the oplog reaches back {}: the stream is close to losing its history; \
                 enlarge the oplog, or find out what blocks the stream",
                in_seconds(*behind),
                in_seconds(*window)
            ),
            Self::OplogUnknown { error } => write!(
                f,
                "the length of the oplog is unknown ({error}); to watch it, grant this user the action find on \
                 the collection local.oplog.rs"
            ),
            Self::InlineSlow { undelivered, of, delay } => write!(
                f,
                "{undelivered} of the last {of} changed documents still had undelivered messages when they were {} old: \
                 inline dispatch is off, slow or failing; if it is slow, lengthen the delay",
                written(*delay)
            ),
            Self::InlineLeaseLong { lease, delay } => write!(
                f,
                "an inline claim lasts {} and the delay is {}: a message whose process died waits for the claim and then for \
                 the sweep; shorten the applications' inline lease or lengthen the delay",
                in_seconds(*lease),
                written(*delay)
            ),
            Self::GraceLong { grace, lease } => write!(
                f,
                "shutdown_grace ({}) is longer than lease ({}): a rescuer that hangs while it stops keeps its streams from \
                 the others for that long; shorten shutdown_grace or lengthen lease",
                written(*grace),
                written(*lease)
            ),
            Self::Unwatchable { pattern, why } => {
                write!(f, "watch has {pattern}, which {why}. Until then the rescuer finds no messages by it")
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

/// A measured time, without its fractions.
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

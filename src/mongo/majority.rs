//! Waiting for the majority without holding a connection.
//!
//! A write that the primary has executed is identified by its *optime*: a timestamp and the term of the
//! primary that wrote it. It lasts once the majority's own optime, of the same term, has reached it: within a
//! term there is one primary, and all its earlier writes are part of the majority's state. The primary's
//! answer to `hello` contains the majority's progress. One `hello` at a time serves all waiters.

use std::time::Duration;

use mongodb::{
    Client,
    bson::{Document, Timestamp, doc},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::mongo::concern::primary;

/// How often the primary is asked.
const INTERVAL: Duration = Duration::from_millis(20);

/// The place of a write in the oplog.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OpTime {
    term: i64,
    at: Timestamp,
}

impl OpTime {
    /// Reads `{ ts, t }`; `None` if there is no such field, as in the replies of mongos.
    pub(crate) fn read(reply: &Document, field: &str) -> Option<Self> {
        let written = reply.get_document(field).ok()?;
        Some(Self { term: written.get_i64("t").ok()?, at: written.get_timestamp("ts").ok()? })
    }

    /// The later of two.
    pub(crate) fn max(self, other: Self) -> Self {
        if (self.term, self.at) < (other.term, other.at) { other } else { self }
    }
}

/// The state of an awaited write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum MajorityState {
    /// The majority has it.
    Lasts,
    /// Another primary was elected meanwhile: ask it whether it has the write.
    NewTerm,
}

/// Follows the majority's progress.
pub(crate) struct Majority {
    client: Client,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    majority: Option<OpTime>,
    asked: Option<Instant>,
}

impl Majority {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, seen: Mutex::default() }
    }

    /// Waits until the state of a write of that time is known: without a time limit, so set one.
    pub(crate) async fn wait(&self, written: OpTime) -> MajorityState {
        loop {
            if let Some(fate) = self.look(written).await {
                return fate;
            }
            sleep(INTERVAL).await;
        }
    }

    /// The state as far as it is known, from a recent `hello`.
    async fn look(&self, written: OpTime) -> Option<MajorityState> {
        let mut seen = self.seen.lock().await;
        let fate = seen.majority.and_then(|majority| judge(majority, written));
        if fate.is_some() || seen.asked.is_some_and(|asked| asked.elapsed() < INTERVAL) {
            return fate;
        }

        let admin = self.client.database("admin");
        let hello = admin.run_command(doc! { "hello": 1 }).selection_criteria(primary()).await;
        seen.asked = Some(Instant::now());
        let hello = hello.ok()?;
        let majority = OpTime::read(hello.get_document("lastWrite").ok()?, "majorityOpTime")?;
        seen.majority = Some(majority);
        judge(majority, written)
    }
}

fn judge(majority: OpTime, written: OpTime) -> Option<MajorityState> {
    if majority.term > written.term {
        Some(MajorityState::NewTerm)
    } else if majority.term == written.term && majority.at >= written.at {
        Some(MajorityState::Lasts)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: i64, time: u32) -> OpTime {
        OpTime { term, at: Timestamp { time, increment: 1 } }
    }

    #[test]
    fn a_write_lasts_only_within_its_own_term() {
        assert_eq!(judge(at(3, 10), at(3, 10)), Some(MajorityState::Lasts));
        assert_eq!(judge(at(3, 9), at(3, 10)), None);
        assert_eq!(judge(at(4, 11), at(3, 10)), Some(MajorityState::NewTerm));
        assert_eq!(judge(at(2, 11), at(3, 10)), None);
    }

    #[test]
    fn an_optime_is_read_from_a_reply() {
        let reply = doc! { "opTime": { "ts": Timestamp { time: 7, increment: 1 }, "t": 3_i64 } };
        assert_eq!(OpTime::read(&reply, "opTime"), Some(at(3, 7)));
        assert_eq!(OpTime::read(&doc! { "ok": 1 }, "opTime"), None);
    }
}

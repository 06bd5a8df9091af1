//! Waits for the majority without holding a connection.
//!
//! A write that the primary has executed is identified by its *optime*, which is a timestamp plus the election term of
//! the primary that wrote it. The write is durable once the majority's own optime has reached the write's optime in the
//! same term, because each term has only one primary, and all earlier writes of that primary are part of the majority's
//! state. The primary's reply to `hello` contains the majority's progress. One `hello` at a time serves all waiters.

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

/// The interval at which the primary is asked for the majority's progress.
const INTERVAL: Duration = Duration::from_millis(20);

/// The position of a write in the oplog.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OpTime {
    term: i64,
    at: Timestamp,
}

impl OpTime {
    /// Reads a field `{ ts, t }`. Returns `None` if there is no such field, as in replies from mongos.
    pub(crate) fn read(reply: &Document, field: &str) -> Option<Self> {
        let written = reply.get_document(field).ok()?;
        Some(Self { term: written.get_i64("t").ok()?, at: written.get_timestamp("ts").ok()? })
    }

    /// Returns the later of two optimes.
    pub(crate) fn max(self, other: Self) -> Self {
        if (self.term, self.at) < (other.term, other.at) { other } else { self }
    }
}

/// The state of an awaited write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum MajorityState {
    /// The majority has the write.
    Lasts,
    /// Another primary was elected after the write and must be asked whether it has the write.
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

    /// Waits until the state of a write with this optime is known. There is no time limit, so the caller must set one.
    pub(crate) async fn wait(&self, written: OpTime) -> MajorityState {
        loop {
            if let Some(fate) = self.look(written).await {
                return fate;
            }
            sleep(INTERVAL).await;
        }
    }

    /// Returns the state from a recent `hello`, if it is known.
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

//! The inbox, a field of an aggregate that records which messages the aggregate has received.

use std::time::Duration;

use mongodb::bson::{DateTime, Uuid};
use serde::{Deserialize, Serialize};

/// Limits on how many records an [`Inbox`] keeps, and for how long.
///
/// ```
/// let mut limits = document_outbox::InboxLimits::default();
/// limits.count = 1_000;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxLimits {
    /// Maximum number of records; the oldest are removed first. Each record takes about 50 bytes of the document.
    pub count: usize,
    /// Records older than this are removed.
    pub age: Duration,
}

impl Default for InboxLimits {
    /// Returns limits of 256 messages and 7 days.
    fn default() -> Self {
        Self { count: 256, age: Duration::from_hours(7 * 24) }
    }
}

/// Records received messages, so that a message that is delivered *at least once* takes effect *exactly once*.
///
/// Add an inbox as a stored field of your own struct: `#[serde(default)] inbox: Inbox`. The effect of a message and its
/// record are saved by the same update, so the record of a repeated message exists exactly if its effect was saved.
///
/// ```
/// # use document_outbox::Inbox;
/// # let (mut inbox, mut paid) = (Inbox::default(), 0);
/// # let message_id = uuid::Uuid::now_v7();
/// for _delivery in 0..2 {
///     if inbox.receive(message_id) {
///         paid += 10;
///     }
/// }
/// assert_eq!(paid, 10);
/// ```
///
/// **Caveat.** An inbox keeps records only within its [limits](InboxLimits), and a repeated message whose record is
/// gone counts as new. Choose limits that outlast every retry and replay of the messages received.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inbox {
    received: Vec<Received>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Received {
    id: Uuid,
    at: DateTime,
}

impl Inbox {
    /// Records a message, within the default limits. Returns true the first time and false for a repeat.
    pub fn receive(&mut self, id: uuid::Uuid) -> bool {
        self.receive_within(InboxLimits::default(), id)
    }

    /// Records a message, within the given limits. Returns true the first time and false for a repeat.
    pub fn receive_within(&mut self, limits: InboxLimits, id: uuid::Uuid) -> bool {
        self.receive_at(limits, id, DateTime::now())
    }

    fn receive_at(&mut self, limits: InboxLimits, id: uuid::Uuid, now: DateTime) -> bool {
        self.record(limits, id, now).is_some()
    }

    /// Records a message. Returns the number of older records that were removed, or `None` for a repeat.
    pub(crate) fn receive_counting(&mut self, limits: InboxLimits, id: uuid::Uuid) -> Option<usize> {
        self.record(limits, id, DateTime::now())
    }

    fn record(&mut self, limits: InboxLimits, id: uuid::Uuid, now: DateTime) -> Option<usize> {
        if self.contains(id) {
            return None;
        }
        let before = self.received.len();

        let age = i64::try_from(limits.age.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.timestamp_millis().saturating_sub(age);
        self.received.retain(|received| received.at.timestamp_millis() >= oldest);

        self.received.push(Received { id: Uuid::from_bytes(id.into_bytes()), at: now });
        // Always keep the record that was just added, even if the limit is zero.
        let surplus = self.received.len().saturating_sub(limits.count.max(1));
        self.received.drain(..surplus);
        Some(before + 1 - self.received.len())
    }

    /// Whether the inbox has a record of this message.
    #[must_use]
    pub fn contains(&self, id: uuid::Uuid) -> bool {
        self.received.iter().any(|received| received.id.bytes() == id.into_bytes())
    }

    /// Number of recorded messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.received.len()
    }

    /// Whether the inbox has no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aged_inbox_record_still_prevents_a_duplicate() {
        let mut inbox = Inbox::default();
        let (id, other) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
        let limits = InboxLimits { count: 10, age: Duration::from_millis(100) };
        assert!(inbox.receive_at(limits, id, DateTime::from_millis(0)));
        assert!(!inbox.receive_at(limits, id, DateTime::from_millis(1_000)));
        assert!(inbox.receive_at(limits, other, DateTime::from_millis(1_000)));
        assert!(!inbox.contains(id), "the next message makes room");
    }

    #[test]
    fn an_inbox_forgets_the_oldest_first() {
        let mut inbox = Inbox::default();
        let limits = InboxLimits { count: 2, age: Duration::from_secs(60) };
        let ids: Vec<_> = (0..3).map(|_| uuid::Uuid::now_v7()).collect();
        ids.iter().for_each(|id| assert!(inbox.receive_within(limits, *id)));
        assert_eq!(
            (inbox.contains(ids[0]), inbox.contains(ids[1]), inbox.contains(ids[2])),
            (false, true, true)
        );
    }
}

//! Messages that wait for something unavailable. While there is such a message, no other messages are taken.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The messages that wait for something unavailable.
#[derive(Debug, Default)]
pub(super) struct Outage {
    waiting: Mutex<WaitingMessages>,
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct WaitingMessages {
    messages: usize,
    reason: String,
}

impl Outage {
    /// The reason why no messages are taken, or `None` if messages are taken.
    pub(super) fn reason(&self) -> Option<String> {
        let waiting = self.waiting.lock();
        (waiting.messages > 0).then(|| waiting.reason.clone())
    }

    /// Notes that a message waits, until the guard is dropped.
    pub(super) fn enter(&self, reason: &str) -> InOutage<'_> {
        let mut waiting = self.waiting.lock();
        waiting.messages += 1;
        reason.clone_into(&mut waiting.reason);
        self.changed.notify_one();
        InOutage(self)
    }
}

/// The guard of a message that waits, see [`Outage::enter`].
pub(super) struct InOutage<'a>(&'a Outage);

impl InOutage<'_> {
    /// Replaces the reason after another failed try.
    pub(super) fn still(&self, reason: &str) {
        reason.clone_into(&mut self.0.waiting.lock().reason);
    }
}

impl Drop for InOutage<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().messages -= 1;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_as_long_as_one_message_waits() {
        let outage = Outage::default();
        assert_eq!(outage.reason(), None);
        let (first, second) = (outage.enter("a"), outage.enter("b"));
        drop(first);
        second.still("c");
        assert_eq!(outage.reason().as_deref(), Some("c"));
        drop(second);
        assert_eq!(outage.reason(), None);
    }
}

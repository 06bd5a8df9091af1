//! Delivers the messages of a claim, window by window.
//!
//! # Guarantees
//! - A window of an ordered document has only one message. If two messages were pipelined and the first failed, the
//!   second would overtake the first.
//! - On a stop, messages whose delivery has not begun are released at once. Deliveries that have begun may finish,
//!   unless the destination is unavailable.
//! - Even if a claim is lost or a write fails, every other message is still settled.

use std::{pin::pin, time::Duration, vec};

use mongodb::{
    bson::{DateTime, Uuid},
    error::Error,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    deliver::{Answer, Outcome},
    dispatch::{
        claim::Recorded,
        claimed_entries::Claim,
        clears_under_way::MOST_ENTRIES,
        outcome::Processed,
        processor::Processor,
        settle::{DeliveryEnd, Keeper, Settling},
        unsettled::Permits,
    },
    mongo::{ClearOutcome, Delivered, Overtaken},
    observe::event::Event,
    stored::{
        deliverable::{DeliveryOrder, Hold},
        entry::{DeadReason, Entry},
        memory::weight_of_entry,
    },
};

/// Maximum size of the messages of an unordered document that are delivered concurrently. The size is limited because
/// each message is copied for its delivery.
const WINDOW_BYTES: usize = 4 << 20;

/// When delivered messages are cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clearing {
    /// The messages are cleared before the delivery returns, because the document is about to be read again.
    AtOnce,
    /// The next save of the document clears the messages if possible. The save can do so only if the claim has all
    /// entries of the outbox.
    MayBeDeferred,
    /// Like `MayBeDeferred`, but a clear that is not deferred is left to the caller, which answers its save first.
    ByCaller,
}

impl Processor {
    /// Delivers the messages of a claim, and settles every entry of the claim.
    pub(crate) async fn deliver_claim(
        &self,
        claim: &Claim,
        ordering: DeliveryOrder,
        stop: &CancellationToken,
        clearing: Clearing,
    ) -> DeliveryEnd {
        let mut settling = Settling::new(self, &claim.document, ClaimKeeper::new(self, claim, clearing));
        let mut windows = self.windows(&claim.entries, ordering).into_iter();

        while let Some(window) = windows.next() {
            let permits = settling.permits(window.len(), stop).await.filter(|_| !stop.is_cancelled());
            let Some(permits) = permits else {
                settling.give_back(window, "shutdown");
                settling.end.stop(Processed::Interrupted);
                break;
            };
            if !self.may_begin(claim, Duration::ZERO).await {
                settling.give_back(window, "not enough of the lease is left");
                settling.end.cut_short = true;
                break;
            }

            let answers = settling.deliver(window, &mut windows, stop).await;
            settling.settle_all(window, answers, permits).await;

            if ordering == DeliveryOrder::DeadBlocks && settling.has_died() {
                settling.end.stop(Processed::Held(Hold::Dead));
            }
            if settling.end.stopped.is_some() && ordering != DeliveryOrder::Unordered {
                break;
            }
        }

        for window in windows {
            settling.give_back(window, "blocked");
        }
        settling.finish().await
    }

    fn windows<'a>(&self, entries: &'a [Entry], ordering: DeliveryOrder) -> Vec<&'a [Entry]> {
        if ordering != DeliveryOrder::Unordered {
            return entries.chunks(1).collect();
        }

        // All messages of a window are published before any of them is cleared, so a window must not exceed the limit
        // of published messages.
        let most = self.claim_limit.min(self.unsettled.bound());
        let mut windows = Vec::new();
        let (mut first, mut bytes) = (0, 0);
        for (index, entry) in entries.iter().enumerate() {
            let weight = weight_of_entry(entry);
            let is_full = index - first >= most || bytes + weight > WINDOW_BYTES;
            if is_full && index > first {
                windows.push(&entries[first..index]);
                (first, bytes) = (index, 0);
            }
            bytes += weight;
        }
        windows.push(&entries[first..]);
        windows
    }

    /// Maximum size of messages that are delivered concurrently.
    pub(crate) fn window_bytes(ordering: DeliveryOrder) -> usize {
        if ordering == DeliveryOrder::Unordered { WINDOW_BYTES } else { 0 }
    }
}

/// The keeper for messages that are claimed in their document. The keeper collects clears and releases, and writes
/// them together.
pub(crate) struct ClaimKeeper<'a> {
    processor: &'a Processor,
    claim: &'a Claim,
    clearing: Clearing,
    delivered: Vec<Uuid>,
    /// The permits of the delivered messages, which count against the limit of messages that a crash would repeat.
    unsettled: Permits,
    given_back: Vec<Uuid>,
}

impl<'a> ClaimKeeper<'a> {
    fn new(processor: &'a Processor, claim: &'a Claim, clearing: Clearing) -> Self {
        Self {
            processor,
            claim,
            clearing,
            delivered: Vec::new(),
            unsettled: Permits::none(),
            given_back: Vec::new(),
        }
    }

    async fn release_all(&self, entries: &[&Entry], delivered_to: &[String]) -> Result<Recorded, Error> {
        let now = self.processor.mongo.clock().now().await?;
        let released = self.processor.claimer.release(self.claim, entries, now, delivered_to).await?;
        if released == Recorded::Done {
            let (document, count) = (self.claim.document.clone(), entries.len());
            self.processor.emit(Event::Released { document, count, reason: "not delivered".into() });
        }
        Ok(released)
    }

    /// Takes the delivered messages that must be cleared now, because they can't be deferred to the next save.
    fn left_to_clear(&mut self) -> Option<Delivered> {
        if self.delivered.is_empty() {
            return None;
        }

        let is_all = self.delivered.len() == self.claim.entries.len();
        let delivered = Delivered {
            document: self.claim.document.clone(),
            token: self.claim.token.clone(),
            ids: std::mem::take(&mut self.delivered),
            overtaken: Overtaken::default(),
        };
        match self.processor.deferred_clears() {
            Some(deferred)
                if self.clearing != Clearing::AtOnce && is_all && self.processor.half_left(self.claim) =>
            {
                let left = self.processor.claim_left(self.claim);
                deferred.defer(delivered, Instant::now() + left).err()
            }
            _ => Some(delivered),
        }
    }
}

impl Keeper for ClaimKeeper<'_> {
    fn until(&self) -> DateTime {
        self.claim.until
    }

    async fn clear(&mut self, entry: &Entry) -> Result<Recorded, Error> {
        self.delivered.push(entry.id);
        Ok(Recorded::Done)
    }

    async fn fail(
        &mut self,
        entry: &Entry,
        retry_at: DateTime,
        error: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        self.processor.claimer.fail(self.claim, entry, retry_at, error, delivered_to).await
    }

    async fn die(
        &mut self,
        entry: &Entry,
        now: DateTime,
        reason: DeadReason,
        error: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        self.processor.claimer.die(self.claim, entry, now, reason, error, delivered_to).await
    }

    async fn release(
        &mut self,
        entry: &Entry,
        _why: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        if delivered_to.is_empty() {
            self.given_back.push(entry.id);
            return Ok(Recorded::Done);
        }
        self.release_all(&[entry], delivered_to).await
    }
}

impl<'a> Settling<'a, ClaimKeeper<'a>> {
    /// Waits until this many more messages may be published. Returns `None` if the delivery was stopped while waiting.
    /// Before the wait, the delivered messages are cleared, so that a waiting delivery never keeps permits that others
    /// need.
    async fn permits(&mut self, count: usize, stop: &CancellationToken) -> Option<Permits> {
        let unsettled = &self.processor.unsettled;
        if let Some(permits) = unsettled.try_take(count) {
            return Some(permits);
        }
        self.clear_delivered().await;
        stop.run_until_cancelled(unsettled.take(count)).await
    }

    /// Delivers a window. On a stop, messages whose delivery has not begun are released at once.
    async fn deliver(
        &mut self,
        window: &'a [Entry],
        rest: &mut vec::IntoIter<&'a [Entry]>,
        stop: &CancellationToken,
    ) -> Vec<Answer> {
        let mut delivery = pin!(self.processor.deliver_window(self.keeper.claim, window, stop));
        if let Some(answers) = stop.run_until_cancelled(&mut delivery).await {
            return answers;
        }

        for window in rest {
            self.give_back(window, "shutdown");
            self.end.stop(Processed::Interrupted);
        }
        let ((), answers) = tokio::join!(self.release_given_back(), delivery);
        answers
    }

    /// Settles a window that has its answers.
    async fn settle_all(&mut self, window: &'a [Entry], answers: Vec<Answer>, permits: Permits) {
        let delivered = answers.iter().filter(|answer| answer.outcome == Outcome::Delivered).count();
        self.keeper.unsettled.keep(permits, delivered);
        for (entry, answer) in window.iter().zip(answers) {
            self.settle(entry, answer).await;
        }
    }

    fn give_back(&mut self, window: &'a [Entry], why: &str) {
        tracing::debug!(document = %self.document, count = window.len(), why, "messages are released");
        self.keeper.given_back.extend(window.iter().map(|entry| entry.id));
    }

    async fn release_given_back(&mut self) {
        let ids = std::mem::take(&mut self.keeper.given_back);
        if !ids.is_empty() {
            let entries = self.keeper.claim.entries.iter();
            let given_back: Vec<_> = entries.filter(|entry| ids.contains(&entry.id)).collect();
            let released = self.keeper.release_all(&given_back, &[]).await;
            self.note(released);
        }
    }

    /// Clears the messages delivered so far, unless their clear can be deferred.
    async fn clear_delivered(&mut self) {
        // The messages count against the limit of repeats until the clear has been answered.
        let unsettled = std::mem::replace(&mut self.keeper.unsettled, Permits::none());
        if let Some(delivered) = self.keeper.left_to_clear() {
            match self.processor.mongo.clear(&delivered).await {
                ClearOutcome::Done => {}
                ClearOutcome::ClaimLost => {
                    self.note(Ok(Recorded::Missed));
                }
                ClearOutcome::Failed(error) => {
                    self.processor.report.not_cleared(self.document, &error);
                    self.end.stop(Processed::Held(Hold::Claimed(self.keeper.until())));
                }
            }
        }
        drop(unsettled);
    }

    /// Whether the clear can be left to the caller. For that, every claimed message must have been delivered, and the
    /// messages must be few enough for a save's filter to name them.
    fn can_leave_the_clear(&self) -> bool {
        let delivered = self.keeper.delivered.len();
        self.keeper.clearing == Clearing::ByCaller
            && delivered == self.keeper.claim.entries.len()
            && delivered <= MOST_ENTRIES
            && self.end.stopped.is_none()
    }

    fn leave_the_clear(&mut self) {
        let unsettled = std::mem::replace(&mut self.keeper.unsettled, Permits::none());
        let clears = &self.processor.clears_under_way;
        self.end.left_clear = self.keeper.left_to_clear().map(|delivered| clears.begin(delivered, unsettled));
    }

    async fn finish(mut self) -> DeliveryEnd {
        if self.can_leave_the_clear() {
            self.leave_the_clear();
        } else {
            self.clear_delivered().await;
        }
        self.release_given_back().await;
        self.end
    }
}

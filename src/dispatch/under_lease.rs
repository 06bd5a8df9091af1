//! Delivers the first deliverable message of a document that has no room for a claim, under a lease.

use mongodb::{bson::DateTime, error::Error};
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::{
        claim::Recorded,
        claimed_entries::Claim,
        outcome::Processed,
        oversized::{Lease, Leased},
        processor::Processor,
        settle::{DeliveryEnd, Keeper, Settling},
    },
    observe::event::Event,
    stored::{
        deliverable::{DeliveryOrder, Hold},
        document_ref::DocumentRef,
        entry::{DeadReason, Entry},
    },
};

/// The outcome for a document that is delivered under a lease.
pub(crate) enum UnderLease {
    /// No delivery was tried.
    Left(Processed),
    /// Delivery of the document's first deliverable message was tried.
    Tried(DeliveryEnd),
}

/// The message to deliver next.
enum Head {
    Message(Box<Entry>),
    /// There is no message to deliver, for this reason.
    None(Processed),
}

impl Processor {
    /// Delivers the first deliverable message of a document that has no room for a claim.
    pub(crate) async fn deliver_under_lease(
        &self,
        document: &DocumentRef,
        ordering: DeliveryOrder,
        stop: &CancellationToken,
    ) -> Result<UnderLease, Error> {
        let now = self.mongo.clock().now().await?;
        let mut lease = match self.oversized.lease(document, &self.claimer.token(), now).await? {
            Leased::Held(lease) => lease,
            Leased::ByAnother { until } => {
                return Ok(UnderLease::Left(Processed::Held(Hold::Claimed(until))));
            }
        };
        self.emit(Event::Oversized { document: document.clone() });
        tracing::warn!(%document, "the document has no room for a claim; its messages are delivered one at a time under a lease");

        let head = match self.head(document, &mut lease, ordering, now, stop).await? {
            Head::Message(entry) => *entry,
            Head::None(why) => {
                self.oversized.give_back(document, lease).await?;
                return Ok(UnderLease::Left(why));
            }
        };
        // Until the message is settled, it counts against the limit of messages that a crash would repeat.
        let Some(unsettled) = stop.run_until_cancelled(self.unsettled.take(1)).await else {
            self.oversized.give_back(document, lease).await?;
            return Ok(UnderLease::Left(Processed::Interrupted));
        };

        let claim = lease.as_claim(document, head);
        let answer = self.deliver_window(&claim, &claim.entries, stop).await.swap_remove(0);
        let keeper = LeaseKeeper { processor: self, claim: &claim, lease: Some(lease) };
        let mut settling = Settling::new(self, document, keeper);
        settling.settle(&claim.entries[0], answer).await;
        drop(unsettled);
        Ok(UnderLease::Tried(settling.end))
    }

    /// Returns the message to deliver, or the reason why there is none.
    async fn head(
        &self,
        document: &DocumentRef,
        lease: &mut Lease,
        ordering: DeliveryOrder,
        now: DateTime,
        stop: &CancellationToken,
    ) -> Result<Head, Error> {
        // Read only after taking the lease, and with read concern `linearizable`. There is no claim in the
        // document, so only this read ensures that the message can't be rolled back after it was published.
        let Some(mut slots) = self.oversized.read(document).await? else {
            lease.complete(&mut []);
            return Ok(Head::None(Processed::Gone));
        };
        lease.complete(&mut slots);

        let plan = self.plan(&slots, ordering, now);
        let Some(entry) = plan.entries.first() else {
            return Ok(Head::None(plan.held.map_or(Processed::Done, Processed::Held)));
        };
        if stop.is_cancelled() {
            return Ok(Head::None(Processed::Interrupted));
        }
        Ok(Head::Message(Box::new((*entry).clone())))
    }
}

/// The keeper for one message whose document is leased. Releasing the lease also stores the message's state with the
/// lease.
struct LeaseKeeper<'a> {
    processor: &'a Processor,
    claim: &'a Claim,
    /// `None` after the lease was released.
    lease: Option<Lease>,
}

impl LeaseKeeper<'_> {
    /// Records the message's state in the lease and releases the lease.
    async fn give_back(&mut self, remember: impl FnOnce(&mut Lease)) -> Result<Recorded, Error> {
        let Some(mut lease) = self.lease.take() else { return Ok(Recorded::Missed) };
        remember(&mut lease);
        self.processor.oversized.give_back(&self.claim.document, lease).await
    }
}

impl Keeper for LeaseKeeper<'_> {
    fn until(&self) -> DateTime {
        self.claim.until
    }

    async fn clear(&mut self, entry: &Entry) -> Result<Recorded, Error> {
        let (processor, document) = (self.processor, &self.claim.document);
        processor.oversized.clear(document, entry.id).await?;

        // The document may have room now. Later claims consider only the state in the document itself, so write the
        // state there.
        if let Some(lease) = &mut self.lease {
            lease.forget(entry.id);
            let now = processor.mongo.clock().now().await?;
            for (id, update) in lease.updates() {
                processor.claimer.record(document, id, update, now).await?;
            }
        }
        self.give_back(|_| {}).await
    }

    async fn fail(
        &mut self,
        entry: &Entry,
        retry_at: DateTime,
        error: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        let attempts = entry.attempts + 1;
        self.give_back(|lease| lease.put_off(entry, attempts, retry_at, error, delivered_to)).await
    }

    async fn die(
        &mut self,
        entry: &Entry,
        now: DateTime,
        reason: DeadReason,
        error: &str,
        _delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        let kept = self.give_back(|lease| lease.die(entry.id, now, reason, error)).await?;

        // Write the state into the document, because once the document has room for claims again, workers don't read
        // the state that was kept with the lease.
        let document = &self.claim.document;
        let recorded = self.processor.claimer.die_without_room(document, entry, now).await?;
        if kept == Recorded::Missed && recorded == Recorded::Done {
            self.processor.report.claim_lost(document);
            return Ok(recorded);
        }
        Ok(kept)
    }

    async fn release(
        &mut self,
        entry: &Entry,
        why: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        if delivered_to.is_empty() {
            return self.give_back(|_| {}).await;
        }
        let now = self.processor.mongo.clock().now().await?;
        self.give_back(|lease| lease.put_off(entry, entry.attempts, now, why, delivered_to)).await
    }
}

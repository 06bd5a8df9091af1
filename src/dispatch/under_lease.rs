//! Delivering the head of a document that has no room for a claim, under a lease.

use tokio_util::sync::CancellationToken;

use mongodb::error::Error;

use crate::{
    deliver::{Answer, Outcome},
    dispatch::{outcome::Processed, oversized::Lease, processor::Processor},
    mongo::clock::later,
    observe::event::Event,
    stored::{
        deliverable::{DeliveryOrder, Hold},
        document_ref::DocumentRef,
        entry::{DeadReason, Entry},
    },
};

impl Processor {
    /// Delivers the head of a document that has no room for a claim. None: look at the document again.
    pub(crate) async fn process_oversized(
        &self,
        document: &DocumentRef,
        ordering: DeliveryOrder,
        stop: &CancellationToken,
    ) -> Result<Option<Processed>, Error> {
        let now = self.mongo.clock().now().await?;
        let mut lease = match self.oversized.lease(document, &self.claimer.token(), now).await? {
            Ok(lease) => lease,
            Err(until) => return Ok(Some(Processed::Held(Hold::Claimed(until)))),
        };
        self.emit(Event::Oversized { document: document.clone() });
        tracing::warn!(%document, "the document has no room for a claim; its outbox is delivered under a lease");

        // Read after the lease, from the majority: without a claim in the document, nothing else keeps a phantom out.
        let mut slots = match self.oversized.read(document).await? {
            None => {
                lease.complete(&mut []);
                self.oversized.give_back(document, lease).await?;
                return Ok(Some(Processed::Gone));
            }
            Some(slots) => slots,
        };
        lease.complete(&mut slots);
        let plan = self.plan(&slots, ordering, now);
        let entry = match plan.entries.first() {
            Some(entry) if !stop.is_cancelled() => *entry,
            Some(_) => {
                self.oversized.give_back(document, lease).await?;
                return Ok(Some(Processed::Interrupted));
            }
            None => {
                self.oversized.give_back(document, lease).await?;
                return Ok(Some(plan.held.map_or(Processed::Done, Processed::Held)));
            }
        };
        let Some(_unsettled) = stop.run_until_cancelled(self.unsettled.take(1)).await else {
            self.oversized.give_back(document, lease).await?;
            return Ok(Some(Processed::Interrupted));
        };
        let entry = entry.clone();
        drop(slots);
        let claim = lease.as_claim(document, entry);
        let answer = self.deliver_window(&claim, &claim.entries, stop).await.swap_remove(0);
        self.settle_under_lease(document, ordering, lease, &claim.entries[0], answer).await
    }

    async fn settle_under_lease(
        &self,
        document: &DocumentRef,
        ordering: DeliveryOrder,
        mut lease: Lease,
        entry: &Entry,
        answer: Answer,
    ) -> Result<Option<Processed>, Error> {
        let Answer { outcome, delivered_to } = answer;
        let attempts = entry.attempts + 1;
        match outcome {
            Outcome::Delivered => {
                self.delivered(document, entry);
                self.oversized.clear(document, entry.id).await?;
                lease.forget(entry.id);
                // There is some room now. Whoever claims in the document looks at nothing but the document.
                let now = self.mongo.clock().now().await?;
                for (id, update) in lease.updates() {
                    self.claimer.record(document, id, update, now).await?;
                }
                self.give_back(document, lease).await?;
                Ok(None)
            }
            Outcome::Unavailable(why) => {
                self.report.unavailable(document, &why);
                if !delivered_to.is_empty() {
                    let now = self.mongo.clock().now().await?;
                    lease.put_off(entry, entry.attempts, now, &why, &delivered_to);
                }
                self.give_back(document, lease).await?;
                Ok(Some(Processed::Unavailable))
            }
            Outcome::Transient(error) if attempts < i64::from(self.retry.max_attempts) => {
                let backoff = self.retry.backoff(u32::try_from(attempts).unwrap_or(1));
                let retry_at = later(self.mongo.clock().now().await?, backoff);
                lease.put_off(entry, attempts, retry_at, &error, &delivered_to);
                if self.give_back(document, lease).await? {
                    self.report.failed(document, entry, &error);
                }
                // In an unordered document it holds back none of the others.
                let held = Processed::Held(Hold::Retrying(retry_at));
                Ok((ordering != DeliveryOrder::Unordered).then_some(held))
            }
            Outcome::Transient(error) => {
                self.die_oversized(document, lease, entry, DeadReason::AttemptsExhausted, &error).await
            }
            Outcome::Permanent(error) => {
                self.die_oversized(document, lease, entry, DeadReason::Permanent, &error).await
            }
        }
    }

    async fn die_oversized(
        &self,
        document: &DocumentRef,
        mut lease: Lease,
        entry: &Entry,
        reason: DeadReason,
        error: &str,
    ) -> Result<Option<Processed>, Error> {
        let now = self.mongo.clock().now().await?;
        lease.die(entry.id, now, reason, error);
        let is_kept = self.give_back(document, lease).await?;
        // Whoever comes when there is room for claims again doesn't look at what was kept with the lease.
        let is_recorded = self.claimer.die_without_room(document, entry, now).await?;
        if is_kept || is_recorded {
            self.report.died(document, entry, reason, error);
        }
        Ok(None)
    }

    /// Gives the lease back; false, and announced, when it had gone to another.
    async fn give_back(&self, document: &DocumentRef, lease: Lease) -> Result<bool, Error> {
        let is_mine = self.oversized.give_back(document, lease).await?;
        if !is_mine {
            self.report.claim_lost(document);
        }
        Ok(is_mine)
    }
}

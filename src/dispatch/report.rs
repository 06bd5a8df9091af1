//! Reports what happens to messages. Every log line, count and event about messages comes from this module.

use std::sync::Arc;

use mongodb::bson::DateTime;
use tokio::sync::broadcast;

use crate::{
    dispatch::outcome::as_uuid,
    mongo::{ClearOutcome, clock::until},
    observe::{
        event::{Event, Events},
        health::HealthRecord,
        metrics::Metrics,
    },
    stored::{
        deliverable::Deliverable,
        document_ref::DocumentRef,
        entry::{DeadReason, Entry, Slot},
    },
};

/// Logs and counts events, and publishes them to subscribers.
#[derive(Clone)]
pub(crate) struct Reporter {
    metrics: Arc<Metrics>,
    events: Events<Event>,
    vitals: Arc<HealthRecord>,
}

impl Reporter {
    pub(crate) fn new(metrics: Arc<Metrics>, vitals: Arc<HealthRecord>) -> Self {
        Self { metrics, events: Events::default(), vitals }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(crate) fn vitals(&self) -> &Arc<HealthRecord> {
        &self.vitals
    }

    /// Counts an event and publishes it to subscribers.
    pub(crate) fn emit(&self, event: Event) {
        self.metrics.record(&event);
        self.events.emit(event);
    }

    pub(crate) fn claim_lost(&self, document: &DocumentRef) {
        tracing::warn!(%document, "a claim expired during delivery; its messages may be delivered again");
        self.emit(Event::ClaimLost { document: document.clone() });
    }

    /// Reports a clear that failed or lost its claim.
    pub(crate) fn cleared(&self, document: &DocumentRef, outcome: &ClearOutcome) {
        match outcome {
            ClearOutcome::Done => {}
            ClearOutcome::ClaimLost => self.claim_lost(document),
            ClearOutcome::Failed(error) => self.not_cleared(document, error),
        }
    }

    #[allow(clippy::unused_self, reason = "all reports go through the reporter")]
    pub(crate) fn not_cleared(&self, document: &DocumentRef, error: &str) {
        tracing::warn!(%document, error, "delivered messages were not cleared; they will be delivered again");
    }

    /// Reports what this process can't deliver: malformed elements, and messages for other deliverers.
    pub(crate) fn left_alone(&self, document: &DocumentRef, slots: &[Slot], plan: &Deliverable<'_>) {
        let unreadable = slots.iter().find_map(|slot| match slot {
            Slot::Unreadable(unreadable) => Some(unreadable),
            Slot::Entry(_) => None,
        });
        if let Some(first) = unreadable {
            let reason = format!("element {}: {}", first.index, first.reason);
            self.unreadable(document, plan.unreadable, reason);
        }

        if plan.not_mine > 0 {
            tracing::debug!(%document, count = plan.not_mine, "messages were skipped because this process has no deliverer for them");
            self.emit(Event::NotMine { document: document.clone(), count: plan.not_mine });
        }
    }

    pub(crate) fn unreadable(&self, document: &DocumentRef, count: usize, reason: String) {
        tracing::warn!(%document, count, reason, "the outbox has malformed elements; they were skipped and left unchanged");
        self.emit(Event::Unreadable { document: document.clone(), count, reason });
    }

    /// Reports a delivered message. `now` is the server's time, if known.
    pub(crate) fn delivered(&self, document: &DocumentRef, entry: &Entry, now: Option<DateTime>) {
        tracing::debug!(%document, id = %entry.id, message_type = entry.message_type, "delivered");
        if let (Some(now), Some(since)) = (now, due_since(entry)) {
            self.metrics.lag(until(since, now));
        }

        let (document, id, message_type) = (document.clone(), as_uuid(entry.id), entry.message_type.clone());
        self.emit(Event::Delivered { document, id, message_type });
    }

    pub(crate) fn failed(&self, document: &DocumentRef, entry: &Entry, error: &str) {
        let attempts = entry.attempts + 1;
        self.vitals.failed(error);
        tracing::info!(
            %document, id = %entry.id, message_type = entry.message_type, attempts, error,
            "a delivery failed and will be retried"
        );

        let (document, id, message_type) = (document.clone(), as_uuid(entry.id), entry.message_type.clone());
        self.emit(Event::Failed { document, id, message_type, attempts, error: error.into() });
    }

    pub(crate) fn died(&self, document: &DocumentRef, entry: &Entry, reason: DeadReason, error: &str) {
        self.vitals.failed(error);
        tracing::error!(
            %document, id = %entry.id, message_type = entry.message_type, reason = reason.as_str(), error,
            "a message is dead; it stays in the document"
        );

        let (document, id, message_type) = (document.clone(), as_uuid(entry.id), entry.message_type.clone());
        self.emit(Event::Died { document, id, message_type, reason, error: error.into() });
    }

    /// Reports that the destination is unavailable.
    pub(crate) fn unavailable(&self, document: &DocumentRef, why: &str) {
        self.vitals.failed(why);
        tracing::debug!(%document, why, "the destination is unavailable");
    }
}

/// The time from which a claimed message could have been delivered. A message's scheduled time is known only until its
/// first failure, because the time of the next attempt replaces it.
fn due_since(entry: &Entry) -> Option<DateTime> {
    let scheduled = entry.available_at.filter(|_| entry.claimed_by.is_none() && entry.attempts == 0);
    entry.created_at.map(|created_at| scheduled.map_or(created_at, |at| at.max(created_at)))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, Document, Uuid, doc};

    use super::*;
    use crate::stored::entry::read_outbox;

    #[test]
    fn lateness_counts_from_sending_or_due_time() {
        let at = DateTime::from_millis;
        let since = |extra: Document| {
            let mut entry = doc! { "id": Uuid::new(), "type": "t" };
            entry.extend(extra);
            let slots = read_outbox(Some(&Bson::from(vec![entry]))).unwrap_or_default();
            slots[0].entry().and_then(due_since)
        };
        let sent = |available_at| doc! { "created_at": at(10), "available_at": at(available_at) };
        assert_eq!(since(sent(10)), Some(at(10)));
        assert_eq!(since(sent(50)), Some(at(50)), "scheduled");
        assert_eq!(since(sent(5)), Some(at(10)), "due before it was sent, by another clock");
        let with = |name: &str, value: Bson| {
            let mut entry = sent(50);
            entry.insert(name, value);
            since(entry)
        };
        assert_eq!(with("attempts", 1.into()), Some(at(10)));
        assert_eq!(with("claimed_by", "p/1".into()), Some(at(10)));
        assert_eq!(since(doc! { "available_at": at(50) }), None, "it is unknown");
    }
}

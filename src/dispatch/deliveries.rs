//! The deliveries of an inline dispatcher: one task for the messages of each save.
//!
//! # Guarantees
//! - Deliveries of one document take turns, except born-claimed ones: no delivery is before them.
//! - A delivery that is dropped with its runtime, or panics, is reported: its messages are left to the rescuer.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use mongodb::{
    bson::{DateTime, Uuid},
    error::Error,
};
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span};

use crate::{
    command::{ProcessDocumentMessages, Reason, sender::CommandSender},
    dispatch::{
        claim::Claim,
        document_locks::{DocumentLock, DocumentLocks},
        outcome::{Disposition, Dispositions, Processed, as_uuid},
        processor::Processor,
        seats::TakenSeat,
        under_claim::Clearing,
    },
    mongo::{StoredOutbox, error_codes, runtime},
    observe::{
        event::{Event, Shed},
        metrics::DispatchPath,
        trace,
    },
    stored::{
        deliverable::{DeliveryOrder, Hold},
        document_ref::DocumentRef,
    },
};

/// The first wait for another's claim to end; it grows to [`CLAIM_WAIT_MAX`].
const CLAIM_WAIT: Duration = Duration::from_millis(5);
const CLAIM_WAIT_MAX: Duration = Duration::from_millis(100);

/// The messages to deliver.
pub(crate) enum Work {
    /// Entries that were saved with this claim.
    BornClaimed(Claim),
    /// Whatever is deliverable.
    Unclaimed(DocumentRef),
}

impl Work {
    fn document(&self) -> &DocumentRef {
        match self {
            Self::BornClaimed(claim) => &claim.document,
            Self::Unclaimed(document) => document,
        }
    }
}

/// The outcome of a save's messages, by their ids, in the order sent.
pub(crate) type Settled = Vec<(uuid::Uuid, Disposition)>;

/// A save that waits for what becomes of its messages.
pub(crate) struct Waiter {
    waits_for: WaitsFor,
    /// Sent once it no longer waits for other deliveries of its document.
    begun: Option<oneshot::Sender<()>>,
    settled: oneshot::Sender<Settled>,
}

/// Until when a save waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// Its messages are confirmed.
    Confirm,
    /// They have been cleared, too.
    Clear,
}

/// The answers to a save that waits. Neither comes where the delivery panics, or ends with its runtime.
pub(crate) struct Awaited {
    pub(crate) begun: oneshot::Receiver<()>,
    pub(crate) settled: oneshot::Receiver<Settled>,
}

impl Waiter {
    pub(crate) fn new(waits_for: WaitsFor) -> (Self, Awaited) {
        let (begin, begun) = oneshot::channel();
        let (settle, settled) = oneshot::channel();
        (Self { waits_for, begun: Some(begin), settled: settle }, Awaited { begun, settled })
    }
}

/// Delivers saved messages, in separate tasks.
pub(crate) struct Deliveries {
    pub(crate) processor: Processor,
    locks: DocumentLocks,
    tasks: TaskTracker,
    hand_off: Option<CommandSender>,
    /// The held messages are released.
    stop: CancellationToken,
}

/// The messages of one save, in delivery.
struct SaveDelivery {
    deliveries: Arc<Deliveries>,
    document: DocumentRef,
    ids: Vec<Uuid>,
    ordering: DeliveryOrder,
    waiter: Option<Waiter>,
    /// The outcome of each message that was tried here.
    dispositions: Dispositions,
}

impl Deliveries {
    pub(crate) fn new(processor: Processor, hand_off: Option<CommandSender>) -> Self {
        Self {
            processor,
            locks: DocumentLocks::default(),
            tasks: TaskTracker::new(),
            hand_off,
            stop: CancellationToken::new(),
        }
    }

    /// Delivers in a separate task: a caller that goes away must not cancel the delivery.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        work: Work,
        ids: Vec<Uuid>,
        ordering: DeliveryOrder,
        seat: TakenSeat,
        waiter: Option<Waiter>,
    ) {
        let document = work.document().clone();
        let span = trace::dispatch(&document, DispatchPath::Inline);
        let unfinished =
            Unfinished { deliveries: Some(self.clone()), document: document.clone(), messages: ids.len() };
        let dispositions = Vec::new();
        let delivery =
            SaveDelivery { deliveries: self.clone(), document, ids, ordering, waiter, dispositions };

        let task = async move {
            match AssertUnwindSafe(delivery.deliver(work)).catch_unwind().await {
                Ok(()) => unfinished.done(),
                Err(_panic) => unfinished.panicked(),
            }
            drop(seat);
        };
        self.tasks.spawn(task.instrument(span));
    }

    /// Whether a delivery of messages of this document is under way.
    pub(crate) fn works_on(&self, document: &DocumentRef) -> bool {
        self.locks.is_taken(document)
    }

    /// Reports messages that are left to the rescuer.
    pub(crate) fn left(&self, document: &DocumentRef, count: usize, reason: Shed) {
        tracing::debug!(%document, reason = reason.as_str(), "not delivered inline; left to the rescuer");
        self.processor.vitals().shed(count, reason);
        self.processor.emit(Event::Skipped { document: document.clone(), count, reason });
    }

    /// From now on their end can be awaited.
    pub(crate) fn close(&self) {
        self.tasks.close();
    }

    /// Releases the held messages, and begins no more deliveries.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all have ended, after [`close`](Self::close).
    pub(crate) async fn ended(&self) {
        self.tasks.wait().await;
    }

    /// How many are in progress.
    pub(crate) fn count(&self) -> usize {
        self.tasks.len()
    }
}

impl SaveDelivery {
    async fn deliver(mut self, work: Work) {
        let done = match work {
            Work::BornClaimed(claim) => self.deliver_claimed(&claim).await,
            Work::Unclaimed(_) => self.deliver_unclaimed().await,
        };

        let processor = &self.deliveries.processor;
        if let Err(error) = done {
            let error = error_codes::describe(&runtime::explain(error));
            tracing::warn!(document = %self.document, error, "inline delivery broke off; the rescuer continues");
            processor.vitals().failed(&error);
            trace::failed(&Span::current(), "interrupted");
        }

        if self.has_failed() {
            self.deliveries.stop.run_until_cancelled(self.hand_off()).await;
        }
        self.answer().await;
    }

    async fn deliver_claimed(&mut self, claim: &Claim) -> Result<(), Error> {
        self.begin();
        // It waits for no other: an earlier delivery has cleared its entries, or this save has taken them out, or its filter had not
        // matched.
        let lock = self.deliveries.locks.beside(&claim.document);
        let deliveries = self.deliveries.clone();
        let (processor, stop) = (&deliveries.processor, &deliveries.stop);
        let end = processor.deliver_claim(claim, self.ordering, stop, self.clearing(claim)).await;
        self.dispositions.extend(end.dispositions);

        if let Some(clear) = end.left_clear {
            self.answer().await;
            // The save that has its answer may be about to send the next one, and comes first: the clear is not in its way.
            tokio::task::yield_now().await;
            processor.clear(&clear).await;

            // In this order: a save that no longer finds the clear must find no delivery at work either.
            drop(lock);
            drop(clear);
        }
        match end.trouble {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// When the messages of a claim are cleared. A save with scheduled messages is answered after the clear: they stay in the outbox,
    /// so the next save could not take out the delivered ones.
    fn clearing(&self, claim: &Claim) -> Clearing {
        match &self.waiter {
            Some(Waiter { waits_for: WaitsFor::Confirm, .. }) if self.ids.len() == claim.entries.len() => {
                Clearing::ByCaller
            }
            _ => Clearing::MayBeDeferred,
        }
    }

    async fn deliver_unclaimed(&mut self) -> Result<(), Error> {
        let deliveries = self.deliveries.clone();
        let (processor, stop) = (&deliveries.processor, &deliveries.stop);
        let _lock = match stop.run_until_cancelled(self.lock()).await {
            Some(Some(lock)) => lock,
            // The delivery that already waits for the lock does this one's work too.
            Some(None) => return Ok(()),
            None => {
                self.leave(Shed::Stopped);
                return Ok(());
            }
        };
        self.begin();
        if let Some(deferred) = processor.deferred_clears() {
            stop.run_until_cancelled(deferred.flush(&self.document)).await;
        }

        let (mut wait, mut waited) = (CLAIM_WAIT, Duration::ZERO);
        loop {
            let pass = processor.process_into(&self.document, self.ordering, stop, &mut self.dispositions);
            match pass.await? {
                // Another process delivers the earlier messages; it will be done in moments, or has died.
                Processed::Held(Hold::Claimed(_)) if waited < processor.claimer().lease => {
                    stop.run_until_cancelled(tokio::time::sleep(wait)).await;
                    waited += wait;
                    wait = (wait * 2).min(CLAIM_WAIT_MAX);
                }
                Processed::Interrupted if self.dispositions.is_empty() => {
                    self.leave(Shed::Stopped);
                    return Ok(());
                }
                Processed::Unavailable if self.dispositions.is_empty() => {
                    self.leave(Shed::Unavailable);
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    /// Waits for the lock of its document; `None` if another that already waits does this one's work too. A
    /// delivery whose save waits has to report the outcome of its own messages.
    async fn lock(&self) -> Option<DocumentLock> {
        if self.waiter.is_some() {
            self.deliveries.locks.queue(&self.document).await
        } else {
            self.deliveries.locks.join(&self.document).await
        }
    }

    /// It no longer waits for earlier deliveries.
    fn begin(&mut self) {
        if let Some(begun) = self.waiter.as_mut().and_then(|waiter| waiter.begun.take()) {
            // The save may no longer wait.
            let _ = begun.send(());
        }
    }

    fn leave(&self, reason: Shed) {
        self.deliveries.left(&self.document, self.ids.len(), reason);
    }

    fn has_failed(&self) -> bool {
        self.dispositions.iter().any(|(_, disposition)| matches!(disposition, Disposition::Retrying { .. }))
    }

    /// Hands a failed delivery over to the workers. A failed command loses no message: the sweep finds it.
    async fn hand_off(&self) {
        let Some(commands) = &self.deliveries.hand_off else { return };
        let document = self.document.clone();
        let command = ProcessDocumentMessages::new(document.clone(), Reason::Handoff);
        match commands.send(vec![command]).await.pop() {
            Some(Ok(())) => self.deliveries.processor.emit(Event::HandedOff { document }),
            Some(Err(error)) => {
                let error = error.to_string();
                tracing::debug!(%document, error, "the hand-off was not sent; the sweep will find the document");
            }
            None => {}
        }
    }

    /// Answers the save, if it waits and has no answer yet.
    async fn answer(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            // The save may no longer wait.
            let _ = waiter.settled.send(self.settled().await);
        }
    }

    /// The outcome of the save's messages: as this process knows, otherwise as the document shows.
    async fn settled(&self) -> Settled {
        let processor = &self.deliveries.processor;
        let mut read = None;
        let mut settled = Vec::with_capacity(self.ids.len());

        for id in &self.ids {
            let tried = self.dispositions.iter().rev().find(|(tried, _)| tried == id);
            let disposition = if let Some((_, disposition)) = tried {
                disposition.clone()
            } else {
                // The document is read once, and only if needed.
                if read.is_none() {
                    read = Some(processor.read(&self.document).await);
                }
                let now = processor.clock().carried_on().unwrap_or_else(DateTime::now);
                match &read {
                    Some(Ok(StoredOutbox::Entries { slots, .. })) => Disposition::read(slots, *id, now),
                    Some(Ok(StoredOutbox::Gone)) => Disposition::Cleared,
                    _ => Disposition::Waiting,
                }
            };
            settled.push((as_uuid(*id), disposition));
        }
        settled
    }
}

/// A delivery that has not ended. If it is dropped with its runtime, or panics, its messages are left to the
/// rescuer, and that is reported.
struct Unfinished {
    /// `None` once it has ended.
    deliveries: Option<Arc<Deliveries>>,
    document: DocumentRef,
    messages: usize,
}

impl Unfinished {
    fn done(mut self) {
        self.deliveries = None;
    }

    fn panicked(mut self) {
        let Some(deliveries) = self.deliveries.take() else { return };
        let why = "a delivery panicked; its claimed messages are delivered again once their claim has ended";
        tracing::error!(document = %self.document, messages = self.messages, why);
        deliveries.processor.vitals().failed(why);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(deliveries) = self.deliveries.take() else { return };
        tracing::warn!(
            document = %self.document,
            messages = self.messages,
            "the runtime ended before a delivery did: close the inline dispatcher first; messages that were \
             not cleared are delivered again"
        );
        deliveries.left(&self.document, self.messages, Shed::Stopped);
    }
}

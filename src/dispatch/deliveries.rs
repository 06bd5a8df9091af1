//! The deliveries of an inline dispatcher. One task delivers the messages of each save.
//!
//! # Guarantees
//! - Deliveries of one document take turns. Deliveries of entries that were saved with a claim need no turn, because no
//!   other delivery of the document can be ahead of them.
//! - If a delivery panics or is dropped with its runtime, the failure is reported, and the messages are left to the
//!   rescuer.

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
        claimed_entries::Claim,
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

/// The first wait for another process's claim to end. Later waits grow up to [`CLAIM_WAIT_MAX`].
const CLAIM_WAIT: Duration = Duration::from_millis(5);
const CLAIM_WAIT_MAX: Duration = Duration::from_millis(100);

/// The messages to deliver.
pub(crate) enum Work {
    /// Entries that were saved with this claim.
    BornClaimed(Claim),
    /// All deliverable messages of the document.
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

/// The outcomes of a save's messages with their ids, in the order sent.
pub(crate) type Settled = Vec<(uuid::Uuid, Disposition)>;

/// A save that waits for the outcome of its messages.
pub(crate) struct Waiter {
    waits_for: WaitsFor,
    /// Sent once the delivery no longer waits for other deliveries of its document.
    begun: Option<oneshot::Sender<()>>,
    settled: oneshot::Sender<Settled>,
}

/// The event that a save waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// The messages are confirmed.
    Confirm,
    /// The messages are confirmed and cleared.
    Clear,
}

/// The signals to a waiting save. Neither signal is sent if the delivery panics or ends with its runtime.
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
    /// Cancelled when claimed messages must be released.
    stop: CancellationToken,
}

/// The delivery of one save's messages.
struct SaveDelivery {
    deliveries: Arc<Deliveries>,
    document: DocumentRef,
    ids: Vec<Uuid>,
    ordering: DeliveryOrder,
    waiter: Option<Waiter>,
    /// The outcome of each message that this delivery tried.
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

    /// Delivers in a separate task, because the delivery must continue even if the caller is dropped.
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

    /// Whether messages of this document are being delivered.
    pub(crate) fn works_on(&self, document: &DocumentRef) -> bool {
        self.locks.is_taken(document)
    }

    /// Reports messages that are left to the rescuer.
    pub(crate) fn left(&self, document: &DocumentRef, count: usize, reason: Shed) {
        tracing::debug!(%document, reason = reason.as_str(), "messages were not delivered inline; the rescuer will deliver them");
        self.processor.vitals().shed(count, reason);
        self.processor.emit(Event::Skipped { document: document.clone(), count, reason });
    }

    /// Stops accepting deliveries, so that [`ended`](Self::ended) can complete.
    pub(crate) fn close(&self) {
        self.tasks.close();
    }

    /// Releases claimed messages and begins no more deliveries.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all deliveries have ended, after [`close`](Self::close).
    pub(crate) async fn ended(&self) {
        self.tasks.wait().await;
    }

    /// Waits until no delivery is in progress. New deliveries may begin meanwhile, and are waited for too.
    #[cfg(feature = "testing")]
    pub(crate) async fn idle(&self) {
        let was_open = self.tasks.close();
        self.tasks.wait().await;
        if was_open {
            self.tasks.reopen();
        }
    }

    /// Number of deliveries in progress.
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
            tracing::warn!(document = %self.document, error, "inline delivery was interrupted; the rescuer will deliver the remaining messages");
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
        // This delivery needn't wait for another delivery: the save's filter matched, so all earlier entries were
        // cleared, or this save has removed them.
        let lock = self.deliveries.locks.beside(&claim.document);
        let deliveries = self.deliveries.clone();
        let (processor, stop) = (&deliveries.processor, &deliveries.stop);
        let end = processor.deliver_claim(claim, self.ordering, stop, self.clearing(claim)).await;
        self.dispositions.extend(end.dispositions);

        if let Some(clear) = end.left_clear {
            self.answer().await;
            // The caller that just got its answer may be about to save again. Let that save go first, because the
            // clear doesn't block the save.
            tokio::task::yield_now().await;
            processor.clear(&clear).await;

            // Drop the lock first: a save that no longer finds the clear must not find a delivery in progress either.
            drop(lock);
            drop(clear);
        }
        match end.trouble {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Decides when the messages of a claim are cleared. A save with scheduled messages is answered after the clear,
    /// because the scheduled messages stay in the outbox, and the next save could not remove the delivered messages.
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
            // A delivery that already waits for the lock will also deliver these messages.
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
                // Another process is delivering the earlier messages. That process will finish in a moment, or has
                // died.
                Processed::Held(Hold::Claimed(_)) if waited < processor.claimer().lease => {
                    stop.run_until_cancelled(processor.mongo.pause(wait)).await;
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

    /// Waits for the lock of its document. Returns `None` if a delivery that already waits will also deliver these
    /// messages. A delivery whose save waits always takes the lock itself, because it has to report the outcome.
    async fn lock(&self) -> Option<DocumentLock> {
        if self.waiter.is_some() {
            self.deliveries.locks.queue(&self.document).await
        } else {
            self.deliveries.locks.join(&self.document).await
        }
    }

    /// Signals that this delivery no longer waits for earlier deliveries.
    fn begin(&mut self) {
        if let Some(begun) = self.waiter.as_mut().and_then(|waiter| waiter.begun.take()) {
            // An error means that the save no longer waits.
            let _ = begun.send(());
        }
    }

    fn leave(&self, reason: Shed) {
        self.deliveries.left(&self.document, self.ids.len(), reason);
    }

    fn has_failed(&self) -> bool {
        self.dispositions.iter().any(|(_, disposition)| matches!(disposition, Disposition::Retrying { .. }))
    }

    /// Hands a failed delivery over to the workers. If the command fails, no message is lost, because the sweep finds
    /// the document.
    async fn hand_off(&self) {
        let Some(commands) = &self.deliveries.hand_off else { return };
        let document = self.document.clone();
        let command = ProcessDocumentMessages::new(document.clone(), Reason::Handoff);
        match commands.send(vec![command]).await.pop() {
            Some(Ok(())) => self.deliveries.processor.emit(Event::HandedOff { document }),
            Some(Err(error)) => {
                let error = error.to_string();
                tracing::debug!(%document, error, "the command that hands the document over to a worker was not sent; the sweep will find the document");
            }
            None => {}
        }
    }

    /// Answers the save if it is waiting and has no answer yet.
    async fn answer(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            // An error means that the save no longer waits.
            let _ = waiter.settled.send(self.settled().await);
        }
    }

    /// Returns the outcomes of the save's messages. An outcome that this process doesn't know is read from the stored
    /// document.
    async fn settled(&self) -> Settled {
        let processor = &self.deliveries.processor;
        let mut read = None;
        let mut settled = Vec::with_capacity(self.ids.len());

        for id in &self.ids {
            let tried = self.dispositions.iter().rev().find(|(tried, _)| tried == id);
            let disposition = if let Some((_, disposition)) = tried {
                disposition.clone()
            } else {
                // Read the document once, and only if needed.
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

/// A guard for a delivery that has not ended. If the delivery panics or is dropped with its runtime, the guard reports
/// that its messages are left to the rescuer.
struct Unfinished {
    /// The inline dispatcher's deliveries. `None` once this delivery has ended.
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
        let why = "a delivery panicked; its claimed messages are delivered again after the claim expires";
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
            "the runtime ended during a delivery; messages that were not cleared are delivered again. Close the inline dispatcher before the runtime ends"
        );
        deliveries.left(&self.document, self.messages, Shed::Stopped);
    }
}

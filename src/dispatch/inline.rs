//! The inline dispatcher delivers messages right after the save, in the process that saved them.
//!
//! # Flow
//! A save first asks for a *seat*, the right to have its messages delivered in this process. If the save gets a seat,
//! and its own filter proves that the outbox is empty, the new entries are *born claimed*: they are written with the
//! claim under which they are delivered, and published without another write. If the filter can't prove that the outbox
//! is empty, the entries are written without a claim, and the inline dispatcher claims them as any other dispatcher
//! would. If the save gets no seat (all are taken, the broker is unavailable, or the dispatcher is closing or switched
//! off), the messages wait in the document for the rescuer.
//!
//! # Guarantees
//! A save never fails because of delivery. The number of seats limits the messages in flight; messages without a seat
//! are not queued in memory.

use std::{fmt, pin::pin, sync::Arc, time::Duration};

use mongodb::bson::Uuid;
use tokio::{
    sync::broadcast,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    deliver::deadline,
    dispatch::{
        claim::Claimer,
        clears_under_way::ClearsUnderWay,
        deferred_clears::DeferredClears,
        deliveries::{Awaited, Deliveries, Settled, Waiter, WaitsFor, Work},
        outcome::{Dispatch, Disposition, as_uuid},
        oversized::Oversized,
        seats::{Seat, Seats},
    },
    mongo::Mongo,
    observe::{event::Event, health::Health, metrics::Metrics},
    stored::{deliverable::DeliveryOrder, document_ref::DocumentRef},
};

/// The fraction of the grace period that `close` reserves for releasing claimed messages, and the most time that it
/// reserves.
const GIVING_BACK: f64 = 0.2;
const GIVING_BACK_MAX: Duration = Duration::from_secs(2);
/// The minimum time that `close` takes to release claimed messages, even if the grace period is shorter.
const CLOSE_MIN: Duration = Duration::from_secs(2);
/// Maximum time that a flush waits for MongoDB.
const FLUSH_MAX: Duration = Duration::from_secs(30);

/// When messages are delivered, relative to the save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Mode {
    /// The save returns when it is durable; delivery continues in the background.
    #[default]
    Background,
    /// The save returns the outcomes once each message has been tried. A message that waits for earlier messages of its
    /// document for longer than half of a lease is reported as [`Disposition::Waiting`] and delivered in the
    /// background. A save inside a handler doesn't wait for deliveries. But a handler should not wait for a separate
    /// *task* that saves, because the save in that task is not recognised as the handler's own.
    Await,
    /// Like [`Await`](Self::Await), but the save returns as soon as the broker or the handlers have confirmed its
    /// messages. The clear is still in progress at that time; if the next save of the document finds messages that
    /// aren't cleared yet, that save removes them. A save with more than 16 messages, or with scheduled messages, still
    /// waits for the clear.
    ///
    /// If the process ends without [`close`](InlineDispatcher::close), messages that were already confirmed may be
    /// repeated.
    AwaitConfirm,
    /// This process delivers no messages; all messages are left to the rescuer.
    Off,
}

impl Mode {
    /// Returns the event that a save waits for, if it waits.
    fn waits_for(self) -> Option<WaitsFor> {
        match self {
            Self::Await => Some(WaitsFor::Clear),
            Self::AwaitConfirm => Some(WaitsFor::Confirm),
            Self::Background | Self::Off => None,
        }
    }
}

/// The inline dispatcher of a process, which all its stores share. Clones are handles to the same dispatcher.
#[derive(Clone)]
pub struct InlineDispatcher {
    mode: Mode,
    seats: Seats,
    deliveries: Arc<Deliveries>,
}

impl fmt::Debug for InlineDispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InlineDispatcher").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl InlineDispatcher {
    pub(crate) fn start(mode: Mode, seats: Seats, deliveries: Deliveries) -> Self {
        Self { mode, seats, deliveries: Arc::new(deliveries) }
    }

    /// Subscribes to the events of messages that this process delivers from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.deliveries.processor.subscribe()
    }

    /// Returns a handle that reports the dispatcher's health, for your own health endpoint. The handle stays valid for
    /// the life of the process.
    pub fn health(&self) -> Health {
        self.deliveries.processor.health()
    }

    /// Stops accepting work, and waits for the saves and deliveries in progress. Stores can continue to save; the
    /// messages of such saves are left to the rescuer.
    ///
    /// Returns when everything has ended, and no later than the end of the grace period `grace`, even if a save's
    /// future is not polled or MongoDB or the broker is unavailable. A grace period below 2 s counts as 2 s.
    /// Deliveries continue for most of the grace period. In the last fifth of the grace period, at most 2 s, messages
    /// whose delivery has not begun are released. Messages that are still claimed after the grace period are delivered
    /// by another process once their claim has ended. With `Duration::MAX`, this call waits until all deliveries have
    /// ended; the leases of their claims limit that time.
    pub async fn close(&self, grace: Duration) {
        let began = Instant::now();
        self.seats.close();
        self.deliveries.processor.vitals().drain();
        self.deliveries.close();

        let mut ended = pin!(self.ended());
        let Some(end) = began.checked_add(grace) else {
            ended.await;
            return;
        };

        // Let deliveries continue for most of the grace period.
        let giving_back = grace.mul_f64(GIVING_BACK).min(GIVING_BACK_MAX);
        if timeout_at(end - giving_back, &mut ended).await.is_ok() {
            return;
        }

        self.deliveries.stop();
        if timeout_at(end.max(began + CLOSE_MIN), ended).await.is_err() {
            tracing::warn!(
                saves = self.seats.saves(),
                deliveries = self.deliveries.count(),
                "some saves or deliveries did not finish within the grace period; messages that are still claimed are delivered again after their claims expire"
            );
        }
    }

    /// Waits until saves and deliveries have ended and all delivered messages are cleared.
    async fn ended(&self) {
        let deferred = self.deferred_clears();
        if let Some(deferred) = deferred {
            deferred.close();
        }
        let flush = async {
            if let Some(deferred) = deferred {
                deferred.flush_all().await;
            }
        };
        let handed_over = async {
            self.seats.handed_over().await;
            self.deliveries.ended().await;
        };
        tokio::join!(flush, handed_over);

        // Flush again, because saves that ended in the meantime may have returned messages that they had taken.
        if let Some(deferred) = deferred {
            deferred.flush_all().await;
        }
    }

    /// Clears the delivered messages whose clear was deferred
    /// ([`defer_clears`](crate::dispatch::InlineBuilder::defer_clears)). Waits up to 30 s for these clears and for the
    /// clears that [`Mode::AwaitConfirm`] has started, but not for deliveries in progress. [`close`](Self::close) also
    /// does this.
    pub async fn flush(&self) {
        let flush = async {
            if let Some(deferred) = self.deferred_clears() {
                deferred.flush_all().await;
            }
            self.clears_under_way().all_ended().await;
        };
        if timeout(FLUSH_MAX, flush).await.is_err() {
            tracing::warn!(
                "some delivered messages were not cleared within {} s; they are delivered again",
                FLUSH_MAX.as_secs()
            );
        }
    }

    /// Waits until no delivery and no clear is in progress.
    #[cfg(feature = "testing")]
    pub(crate) async fn idle(&self) {
        self.deliveries.idle().await;
        self.flush().await;
    }

    /// The MongoDB access that the stores share with their inline dispatcher.
    pub(crate) fn mongo(&self) -> &Mongo {
        &self.deliveries.processor.mongo
    }

    pub(crate) fn claimer(&self) -> &Claimer {
        self.deliveries.processor.claimer()
    }

    /// The leases on documents that have no room for a claim.
    pub(crate) fn oversized(&self) -> &Oversized {
        &self.deliveries.processor.oversized
    }

    /// The name of the deliverer that serves messages of this type.
    pub(crate) fn via(&self, message_type: &str) -> Option<&str> {
        self.deliveries.processor.deliverer().via(message_type)
    }

    /// Whether this process can deliver messages with this `via`.
    pub(crate) fn serves(&self, via: Option<&str>) -> bool {
        self.deliveries.processor.deliverer().serves(via)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.deliveries.processor.metrics()
    }

    /// The delivered messages whose clear is deferred to the next save of their document.
    pub(crate) fn deferred_clears(&self) -> Option<&DeferredClears> {
        self.deliveries.processor.deferred_clears()
    }

    /// Clears that no save waits for.
    pub(crate) fn clears_under_way(&self) -> &ClearsUnderWay {
        &self.deliveries.processor.clears_under_way
    }

    /// Number of delivered entries of this document that the next save may remove or that are about to be cleared.
    pub(crate) fn delivered_and_there(&self, document: &DocumentRef) -> usize {
        let deferred = self.deferred_clears().map_or(0, |deferred| deferred.count(document));
        deferred + self.clears_under_way().count(document)
    }

    /// Clears the delivered messages of this document as far as possible, and waits until that is done.
    pub(crate) async fn flush_document(&self, document: &DocumentRef) {
        if let Some(deferred) = self.deferred_clears() {
            deferred.flush(document).await;
        }
        self.clears_under_way().ended(document).await;
    }

    /// Whether a delivery of messages of this document is under way.
    pub(crate) fn works_on(&self, document: &DocumentRef) -> bool {
        self.deliveries.works_on(document)
    }

    /// Takes a seat for a save with this many due messages of this total size. Returns what to report if there is no
    /// seat.
    pub(crate) fn seat_for(&self, due: usize, weight: usize) -> Result<Seat, Dispatch> {
        if self.mode == Mode::Off {
            return Err(Dispatch::Off);
        }
        if due == 0 {
            return Err(Dispatch::Scheduled);
        }
        self.seats.take(&self.deliveries.processor, weight).map_err(Dispatch::Skipped)
    }

    /// Reports why messages are not delivered inline, unless that is expected.
    pub(crate) fn left(&self, document: &DocumentRef, due: usize, why: &Dispatch) {
        if let Dispatch::Skipped(reason) = *why {
            self.deliveries.left(document, due, reason);
        }
    }

    /// Delivers a save's messages as the mode requires.
    pub(crate) async fn dispatch(
        &self,
        seat: Seat,
        work: Work,
        ids: Vec<Uuid>,
        ordering: DeliveryOrder,
    ) -> Dispatch {
        let Seat { save, taken } = seat;
        // A handler that saves runs inside a delivery. If its save waited for another delivery, the two deliveries
        // could wait for each other.
        let waits_for = self.mode.waits_for().filter(|_| deadline().is_none());
        let Some(waits_for) = waits_for else {
            self.deliveries.spawn(work, ids, ordering, taken, None);
            drop(save);
            return Dispatch::Background;
        };

        let (waiter, Awaited { begun, mut settled }) = Waiter::new(waits_for);
        self.deliveries.spawn(work, ids.clone(), ordering, taken, Some(waiter));
        drop(save);

        // Limit the wait to prevent a deadlock: if a handler of a message of this document waits for a task that saves
        // the document, that save in turn waits for the handler.
        let patience = self.claimer().lease / 2;
        let settled = tokio::select! {
            settled = &mut settled => settled,
            waited = timeout(patience, begun) => {
                if waited.is_err() {
                    return Dispatch::Settled(waiting(&ids));
                }
                settled.await
            }
        };
        Dispatch::Settled(settled.unwrap_or_else(|_ended| waiting(&ids)))
    }
}

/// The outcomes of messages that have not been tried yet.
fn waiting(ids: &[Uuid]) -> Settled {
    ids.iter().map(|id| (as_uuid(*id), Disposition::Waiting)).collect()
}

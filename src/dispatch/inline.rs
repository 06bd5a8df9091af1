//! The inline dispatcher: delivery right after the save, by the process that saved.
//!
//! # Flow
//! A save first asks for a *seat*. With a seat, and where the save's own filter proves the outbox empty, the new entries
//! are *born claimed*: written with the claim that delivers them, and published without another write. In every other
//! case they are born unclaimed, and the inline dispatcher claims them like anyone else. Without a seat (full, the
//! broker away, shutting down, switched off) the message waits in the document for the rescuer.
//!
//! # Guarantees
//! A save never fails because of delivery. Seats bound what is in flight; nothing queues without one.

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
        seats::{Seat, Seats},
    },
    mongo::Mongo,
    observe::{event::Event, health::Health, metrics::Metrics},
    stored::{deliverable::DeliveryOrder, document_ref::DocumentRef},
};

/// The part of the grace in which closing releases held messages, and the longest time for that.
const GIVING_BACK: f64 = 0.2;
const GIVING_BACK_MAX: Duration = Duration::from_secs(2);
/// The minimum time in which `close` releases held messages, even with a shorter grace.
const CLOSE_MIN: Duration = Duration::from_secs(2);
/// How long a flush waits for MongoDB.
const FLUSH_MAX: Duration = Duration::from_secs(30);

/// When messages are delivered, seen from the save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Mode {
    /// The save returns when it is durable; delivery continues in the background.
    #[default]
    Background,
    /// The save returns once each message was tried, with its outcome. A message that waits for others of its
    /// document for longer than half of a lease answers [`Disposition::Waiting`], and is delivered in the
    /// background. A handler's own save waits for no delivery; but a handler should not wait for a *task*
    /// that saves, because that save is not recognised as the handler's.
    Await,
    /// Like [`Await`](Self::Await), but the save returns once its messages are confirmed, by the broker or by their handlers. Their
    /// clear is under way then, and the next save of the document takes out the messages that it still finds. A save of more than
    /// 16 messages, or with scheduled ones, waits for the clear.
    ///
    /// If the process ends without [`close`](InlineDispatcher::close), messages that were confirmed to it may be repeated.
    AwaitConfirm,
    /// This process delivers no messages; the rescuer finds them.
    Off,
}

impl Mode {
    /// Until when a save waits, if it does.
    fn waits_for(self) -> Option<WaitsFor> {
        match self {
            Self::Await => Some(WaitsFor::Clear),
            Self::AwaitConfirm => Some(WaitsFor::Confirm),
            Self::Background | Self::Off => None,
        }
    }
}

/// The inline dispatcher of a process, shared by its stores. Clones share the same dispatcher.
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

    /// The events of messages that this process delivers, from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.deliveries.processor.subscribe()
    }

    /// Returns a handle that reports the dispatcher's health. Use it in your own health endpoint; it stays
    /// valid for the life of the process.
    pub fn health(&self) -> Health {
        self.deliveries.processor.health()
    }

    /// Stops taking work, and waits for what is in flight. Stores continue to save; their messages wait for the rescuer.
    ///
    /// It returns when everything has ended, and always at the end of `grace`, even if a save's future is not
    /// polled or MongoDB or the broker is unavailable. With a grace below 2 s it may take 2 s. For most of
    /// the grace deliveries continue; in its last fifth, at most 2 s, messages whose delivery has not begun
    /// are released. Messages that are not released by then are delivered by others once their claim has
    /// ended. `Duration::MAX` waits for as long as deliveries take, which their leases bound.
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

        // Deliveries continue for most of the grace.
        let giving_back = grace.mul_f64(GIVING_BACK).min(GIVING_BACK_MAX);
        if timeout_at(end - giving_back, &mut ended).await.is_ok() {
            return;
        }

        self.deliveries.stop();
        if timeout_at(end.max(began + CLOSE_MIN), ended).await.is_err() {
            tracing::warn!(
                saves = self.seats.saves(),
                deliveries = self.deliveries.count(),
                "the grace period ended before all saves and deliveries did; messages that are still \
                 claimed are delivered again once their claims have ended"
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

        // Messages that saves have returned since.
        if let Some(deferred) = deferred {
            deferred.flush_all().await;
        }
    }

    /// Clears the delivered messages whose clear was deferred
    /// ([`defer_clears`](crate::dispatch::InlineBuilder::defer_clears)), and waits for that and for the clears
    /// that [`Mode::AwaitConfirm`] leaves under way, at most 30 s; it does not wait for deliveries in progress.
    /// [`close`](Self::close) does so too.
    pub async fn flush(&self) {
        let flush = async {
            if let Some(deferred) = self.deferred_clears() {
                deferred.flush_all().await;
            }
            self.clears_under_way().all_ended().await;
        };
        if timeout(FLUSH_MAX, flush).await.is_err() {
            tracing::warn!(
                "delivered messages were not cleared within {} s; the remaining ones are delivered again",
                FLUSH_MAX.as_secs()
            );
        }
    }

    /// The access to MongoDB that stores and their inline dispatcher share.
    pub(crate) fn mongo(&self) -> &Mongo {
        &self.deliveries.processor.mongo
    }

    pub(crate) fn claimer(&self) -> &Claimer {
        self.deliveries.processor.claimer()
    }

    /// Which deliverer serves messages of this type.
    pub(crate) fn via(&self, message_type: &str) -> Option<&str> {
        self.deliveries.processor.deliverer().via(message_type)
    }

    /// Whether messages with this `via` can be delivered from here.
    pub(crate) fn serves(&self, via: Option<&str>) -> bool {
        self.deliveries.processor.deliverer().serves(via)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.deliveries.processor.metrics()
    }

    /// The delivered messages that wait for the next save of their document.
    pub(crate) fn deferred_clears(&self) -> Option<&DeferredClears> {
        self.deliveries.processor.deferred_clears()
    }

    /// Clears that no save waits for.
    pub(crate) fn clears_under_way(&self) -> &ClearsUnderWay {
        &self.deliveries.processor.clears_under_way
    }

    /// How many entries of this document were delivered, and wait for a save to take them out or are about to be cleared.
    pub(crate) fn delivered_and_there(&self, document: &DocumentRef) -> usize {
        let deferred = self.deferred_clears().map_or(0, |deferred| deferred.count(document));
        deferred + self.clears_under_way().count(document)
    }

    /// Waits until all delivered messages have left this document, as far as they can be cleared.
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

    /// A seat for a save of which this many messages are due, with room for messages of this weight; or what to report because
    /// there is none.
    pub(crate) fn seat_for(&self, due: usize, weight: usize) -> Result<Seat, Dispatch> {
        if self.mode == Mode::Off {
            return Err(Dispatch::Off);
        }
        if due == 0 {
            return Err(Dispatch::Scheduled);
        }
        self.seats.take(&self.deliveries.processor, weight).map_err(Dispatch::Skipped)
    }

    /// Reports the reason for a missing delivery, if it is worth a report.
    pub(crate) fn left(&self, document: &DocumentRef, due: usize, why: &Dispatch) {
        if let Dispatch::Skipped(reason) = *why {
            self.deliveries.left(document, due, reason);
        }
    }

    /// Delivers a save's messages, by the mode.
    pub(crate) async fn dispatch(
        &self,
        seat: Seat,
        work: Work,
        ids: Vec<Uuid>,
        ordering: DeliveryOrder,
    ) -> Dispatch {
        let Seat { save, taken } = seat;
        // A handler that saves is itself part of a delivery; if it waited for the next one, the two could
        // wait for each other.
        let waits_for = self.mode.waits_for().filter(|_| deadline().is_none());
        let Some(waits_for) = waits_for else {
            self.deliveries.spawn(work, ids, ordering, taken, None);
            drop(save);
            return Dispatch::Background;
        };

        let (waiter, Awaited { begun, mut settled }) = Waiter::new(waits_for);
        self.deliveries.spawn(work, ids.clone(), ordering, taken, Some(waiter));
        drop(save);

        // The turn of its document may never come before this returns: if a handler waits for another task
        // that saves, that save waits for the handler.
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

/// The answer for messages whose outcome is not known yet.
fn waiting(ids: &[Uuid]) -> Settled {
    ids.iter().map(|id| (as_uuid(*id), Disposition::Waiting)).collect()
}

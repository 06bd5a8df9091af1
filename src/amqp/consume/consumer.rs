//! Consumes messages with acknowledgements.
//!
//! # Flow
//!
//! The supervisor connects, subscribes to the queue and hands the deliveries to the consumer's caller. It
//! connects and subscribes again after any error, when the broker has cancelled the consumer, and when the
//! stream has ended. The broker then delivers unacknowledged messages again and marks them as redelivered.
//!
//! # The watchdog
//!
//! A consumer can stop receiving without an error, so an idle consumer checks its queue from time to time. The
//! consumer reconnects if the broker no longer knows it. The consumer also reconnects if two checks in a row find
//! messages waiting in the queue, although the consumer has no unsettled deliveries and no delivery arrived between
//! the checks.
//!
//! At each check, a topology in mode `declare` is declared again, because a queue that lost its binding appears to be
//! idle.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::amqp::{
    connection::Plan,
    consume::{
        arrivals::Arrivals,
        delivery::Delivery,
        supervisor::{ConsumeSupervisor, Intake, Subscription},
    },
    settings::AmqpSettings,
    state::{Board, State, States},
    supervise::supervise,
    topology::Topology,
};

/// Takes deliveries from one queue, over its own connection, which is closed when the consumer is dropped.
#[derive(Debug)]
pub struct Consumer {
    arrivals: Arc<Arrivals>,
    states: States,
    intake: watch::Sender<Intake>,
    taking: watch::Receiver<bool>,
    stop: CancellationToken,
    _end: DropGuard,
    end: CancellationToken,
}

impl Consumer {
    /// Starts connecting in the background and returns at once.
    ///
    /// At most `prefetch` deliveries are unsettled at a time; 0 means no limit. `tag` is the consumer's name as shown
    /// by the broker.
    ///
    /// # Panics
    /// Panics outside a Tokio runtime.
    #[must_use]
    pub fn start(
        settings: AmqpSettings,
        topology: Topology,
        queue: String,
        prefetch: u16,
        tag: String,
    ) -> Self {
        let plan = Arc::new(Plan { settings, topology, role: "consumer" });
        let board = Board::new(plan.name());
        let states = board.states();
        let arrivals = Arc::new(Arrivals::default());
        let (put_back, dropped) = mpsc::unbounded_channel();
        let (taking, still_taking) = watch::channel(true);
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let (intake, wanted) = watch::channel(Intake::AtMost(prefetch));
        let subscription = Subscription { queue, tag, count: 0 };
        let supervisor = ConsumeSupervisor {
            plan,
            subscription,
            board,
            arrivals: arrivals.clone(),
            put_back,
            dropped,
            wanted,
            taking,
            stop: stop.clone(),
            end: end.clone(),
        };
        tokio::spawn(supervise(supervisor));
        Self { arrivals, states, intake, taking: still_taking, stop, _end: end.clone().drop_guard(), end }
    }

    /// Waits for the next delivery. Returns `None` after [`stop_taking`](Self::stop_taking) or [`close`](Self::close).
    /// Cancel safe.
    pub async fn next(&self) -> Option<Delivery> {
        loop {
            let arrived = self.arrivals.arrived.notified();
            if self.stop.is_cancelled() {
                return None;
            }
            if let Some(delivery) = self.arrivals.take() {
                return Some(delivery);
            }
            tokio::select! {
                () = arrived => {}
                () = self.stop.cancelled() => {}
                () = self.states.closed() => return None,
            }
        }
    }

    /// Whether the consumer is subscribed to the queue.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.states.is_ready()
    }

    /// Waits until the consumer is subscribed. Returns false if it can no longer become subscribed, which is the case
    /// after [`close`](Self::close).
    pub async fn ready(&self) -> bool {
        self.states.ready().await
    }

    /// Returns a receiver of the state and of every later change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.states.subscribe()
    }

    /// Stops taking deliveries until [`resume`](Self::resume), and requeues those that [`next`](Self::next) has not
    /// returned. The connection stays open, so returned deliveries can still be settled. Returns at once.
    pub fn pause(&self) {
        self.want(Intake::Nothing);
    }

    /// Takes deliveries again after [`pause`](Self::pause), or changes the prefetch. Returns at once.
    pub fn resume(&self, prefetch: u16) {
        self.want(Intake::AtMost(prefetch));
    }

    fn want(&self, wanted: Intake) {
        self.intake.send_if_modified(|intake| std::mem::replace(intake, wanted) != wanted);
    }

    /// Ends the subscription: [`next`](Self::next) returns no more deliveries, and deliveries that it has not returned
    /// are requeued. Deliveries that it has returned can still be settled, until [`close`](Self::close) or an error.
    ///
    /// Completes within five seconds, whatever the broker does.
    pub async fn stop_taking(&self) {
        self.stop.cancel();
        // An error means that the supervisor and its subscription have ended.
        let _ = self.taking.clone().wait_for(|taking| !taking).await;
        while let Some(delivery) = self.arrivals.take() {
            drop(delivery);
        }
    }

    /// Closes the connection, within two seconds. Deliveries that are not settled by then are redelivered to any
    /// consumer.
    pub async fn close(&self) {
        self.stop.cancel();
        self.end.cancel();
        self.states.closed().await;
    }
}

//! Consuming with acknowledgements.
//!
//! # Flow
//!
//! The supervisor connects, subscribes to the queue and passes deliveries on. After any error, after the
//! broker cancelled the consumer, and at the end of the stream it connects and subscribes again;
//! unacknowledged deliveries come again, marked as redelivered.
//!
//! # The watchdog
//!
//! A consumer can fall silent without an error. So a silent one checks its queue from time to time. If the
//! broker has no consumer for it, or if at two checks in a row messages wait while none is held here and none
//! arrived in between, it connects again.
//!
//! At the same times a topology in mode `declare` is declared again, because a queue that lost its binding
//! appears idle.

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

/// Takes deliveries from one queue, over its own connections. Dropping it closes them.
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
    /// At most `prefetch` deliveries are unsettled at a time; 0 means any number. `tag` is the name of the
    /// consumer, shown by the broker.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
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

    /// The next delivery; `None` after [`stop_taking`](Self::stop_taking) or [`close`](Self::close). Cancel
    /// safe.
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

    /// Whether it is subscribed to the queue.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.states.is_ready()
    }

    /// Waits until subscribed. False once that is no longer possible, after [`close`](Self::close).
    pub async fn ready(&self) -> bool {
        self.states.ready().await
    }

    /// The state, with every later change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.states.subscribe()
    }

    /// Takes no more deliveries for now, and requeues those that [`next`](Self::next) has not returned; the
    /// connection stays, and returned deliveries can be settled. Returns at once.
    pub fn pause(&self) {
        self.want(Intake::Nothing);
    }

    /// Takes deliveries again after [`pause`](Self::pause), or with another prefetch than before. Returns at once.
    pub fn resume(&self, prefetch: u16) {
        self.want(Intake::AtMost(prefetch));
    }

    fn want(&self, wanted: Intake) {
        self.intake.send_if_modified(|intake| std::mem::replace(intake, wanted) != wanted);
    }

    /// Ends the subscription: [`next`](Self::next) returns no more deliveries, and those that it had not
    /// returned are requeued. Deliveries that it returned can still be settled, until [`close`](Self::close)
    /// or an error.
    ///
    /// Ends within five seconds, whatever the broker does.
    pub async fn stop_taking(&self) {
        self.stop.cancel();
        // An error means that the supervisor and its subscription have ended.
        let _ = self.taking.clone().wait_for(|taking| !taking).await;
        while let Some(delivery) = self.arrivals.take() {
            drop(delivery);
        }
    }

    /// Closes the connection, in two seconds at most; deliveries that are not settled by then come again, to
    /// any consumer.
    pub async fn close(&self) {
        self.stop.cancel();
        self.end.cancel();
        self.states.closed().await;
    }
}

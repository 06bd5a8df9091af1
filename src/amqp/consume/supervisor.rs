//! The task behind a [`Consumer`](super::Consumer), which connects, subscribes, hands deliveries to the consumer, and
//! starts again after a failure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use lapin::{
    Acker, Channel, Connection,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::amqp::{
    connection::{ConnectionEvent, Link, Plan},
    consume::{
        arrivals::Arrivals,
        delivery::{Delivery, Held, requeue},
        watchdog::{QueueStatus, Watchdog},
    },
    state::{Board, State},
    supervise::{End, Pauses, Supervised},
    topology::TopologyMode,
    trouble::{Trouble, broker_said, code_of, short},
};

/// Maximum time for ending the subscription, and for requeueing a delivery.
const UNSUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum interval between two checks of a queue.
const SHORTEST_CHECK: Duration = Duration::from_millis(10);

/// The number of deliveries that a consumer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    Nothing,
    /// At most this many unsettled deliveries at a time; 0 means no limit.
    AtMost(u16),
}

/// The queue to consume from, and the name of the consumer.
pub(super) struct Subscription {
    pub(super) queue: String,
    pub(super) tag: String,
    /// Number of subscriptions so far on this connection. The number is part of the consumer tag, so that unsettled
    /// deliveries of an earlier subscription don't count for the current one.
    pub(super) count: u64,
}

pub(super) struct ConsumeSupervisor {
    pub(super) plan: Arc<Plan>,
    pub(super) subscription: Subscription,
    pub(super) board: Board,
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) put_back: mpsc::UnboundedSender<Acker>,
    pub(super) dropped: mpsc::UnboundedReceiver<Acker>,
    pub(super) wanted: watch::Receiver<Intake>,
    pub(super) taking: watch::Sender<bool>,
    pub(super) stop: CancellationToken,
    pub(super) end: CancellationToken,
}

/// The state of one connection.
struct ServedConnection {
    stream: Option<lapin::Consumer>,
    /// Cancelled when the connection is gone and its deliveries can't be settled any more.
    gone: CancellationToken,
    /// Number of deliveries that were handed out and are not settled.
    held: Arc<AtomicUsize>,
    watchdog: Watchdog,
    check: Interval,
    /// Whether no more deliveries are wanted. Deliveries that were handed out may still be settled.
    stopped: bool,
}

impl Supervised for ConsumeSupervisor {
    fn board(&self) -> &Board {
        &self.board
    }

    fn pauses(&self) -> Pauses {
        Pauses::new(self.plan.settings.reconnect_min, self.plan.settings.reconnect_max)
    }

    fn open(&self) -> impl Future<Output = Result<Link, Trouble>> + Send + 'static {
        let plan = self.plan.clone();
        async move { plan.open().await }
    }

    /// Runs `work` while there is no connection. Returns `None` if the consumer is asked to end or to stop
    /// before `work` is done.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        self.unless_stopped(work).await
    }

    async fn serve(&mut self, link: &mut Link) -> End {
        self.subscription.count = 0;
        let stopping = self.stopping();
        let subscribed = tokio::select! {
            biased;
            () = stopping => return End::Asked,
            subscribed = self.subscribe(&link.channel) => subscribed,
        };
        let stream = match subscribed {
            Ok(stream) => stream,
            Err(trouble) => return End::Lost(trouble),
        };

        let mut served = ServedConnection::new(stream, self.watchdog(), self.plan.settings.consumer_check);
        let _gone = served.gone.clone().drop_guard();
        loop {
            if let Err(end) = self.step(link, &mut served).await {
                return end;
            }
        }
    }

    fn lost(&mut self, trouble: Trouble) {
        self.board.post(trouble.into());
    }

    async fn finish(&mut self) {}

    fn ended(&mut self) {
        self.taking.send_replace(false);
    }
}

impl ConsumeSupervisor {
    /// Waits for one event and reacts to it. Returns an error if this connection must no longer be used.
    async fn step(&mut self, link: &mut Link, served: &mut ServedConnection) -> Result<(), End> {
        let takes = !served.stopped;

        tokio::select! {
            biased;
            () = self.end.cancelled() => Err(End::Asked),
            () = self.stop.cancelled(), if takes => self.stop_taking(&link.channel, served).await,
            Ok(()) = self.wanted.changed(), if takes => self.subscribe_again(&link.channel, served).await,
            Some(acker) = self.dropped.recv() => {
                let queue = &self.subscription.queue;
                tracing::debug!(queue, "a delivery was dropped without being settled; it is requeued");
                // A delivery that can't be requeued is redelivered when the connection ends.
                let _ = timeout(UNSUBSCRIBE_TIMEOUT, requeue(acker)).await;
                Ok(())
            }
            event = link.event() => match event {
                ConnectionEvent::Lost(reason) => Err(End::lost(reason)),
                // If the link is still alive, the closed channel was not the subscription's, but a separate
                // channel for checking the queue.
                ConnectionEvent::ChannelClosed(reason) if !link.alive() => Err(End::lost(reason)),
                ConnectionEvent::ChannelClosed(_)
                | ConnectionEvent::Blocked(_)
                | ConnectionEvent::Unblocked => Ok(()),
            },
            delivery = next_of(&mut served.stream), if takes => self.pass_on(delivery, served),
            _ = served.check.tick(), if takes && served.stream.is_some() => {
                self.check_queue(&link.connection, served).await
            }
        }
    }

    /// Ends the subscription on request. Deliveries that were handed out can still be settled.
    async fn stop_taking(&self, channel: &Channel, served: &mut ServedConnection) -> Result<(), End> {
        served.stopped = true;
        let unsubscribed = tokio::select! {
            biased;
            () = self.end.cancelled() => return Err(End::Asked),
            unsubscribed = self.unsubscribe(channel, served.stream.take()) => unsubscribed,
        };
        self.taking.send_replace(false);
        unsubscribed.map_err(End::lost)
    }

    /// Changes the prefetch by subscribing again, or pauses.
    async fn subscribe_again(&mut self, channel: &Channel, served: &mut ServedConnection) -> Result<(), End> {
        served.watchdog = self.watchdog();
        self.unsubscribe(channel, served.stream.take()).await.map_err(End::lost)?;
        served.stream = self.subscribe(channel).await.map_err(End::Lost)?;
        Ok(())
    }

    fn watchdog(&self) -> Watchdog {
        Watchdog::new(self.plan.topology.has_one_active_consumer(&self.subscription.queue))
    }

    fn pass_on(
        &self,
        delivery: Option<lapin::Result<lapin::message::Delivery>>,
        served: &mut ServedConnection,
    ) -> Result<(), End> {
        let delivery = match delivery {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => return Err(End::lost(broker_said(&error))),
            None => return Err(End::lost("the subscription ended; its queue may have been deleted")),
        };

        served.watchdog.delivered();
        served.held.fetch_add(1, Ordering::Relaxed);
        let held = Held {
            acker: Some(delivery.acker.clone()),
            gone: served.gone.clone(),
            count: served.held.clone(),
            put_back: self.put_back.clone(),
        };
        self.arrivals.put(Delivery::new(delivery, held));
        Ok(())
    }

    /// Checks the queue of an idle consumer, and declares missing parts of the topology.
    async fn check_queue(&self, connection: &Connection, served: &mut ServedConnection) -> Result<(), End> {
        let patience = self.plan.settings.connect_timeout;
        let asking = timeout(patience, self.queue_status(connection));
        // A stop need not wait for the broker's answer; the next step handles the stop.
        let Some(answer) = self.unless_stopped(asking).await else {
            return Ok(());
        };

        let held = served.held.load(Ordering::Relaxed);
        let status = answer.unwrap_or_else(|_| Err("no answer to the check of the queue".to_owned()));
        let checked = status.and_then(|status| served.watchdog.check(&status, held));
        checked.map_err(End::lost)?;

        // If the consumer was stopped in the meantime, the next step handles the stop.
        let _ = self.unless_stopped(self.declare_again(connection)).await;
        Ok(())
    }

    /// Waits for `work`. Returns `None` if the consumer is asked to end or to stop before `work` is done.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stopping() => None,
            done = work => Some(done),
        }
    }

    /// Waits until the consumer is asked to end or to stop. The future borrows nothing, so it can be awaited together
    /// with any other.
    fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        let (end, stop) = (self.end.clone(), self.stop.clone());
        async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Subscribes or pauses, as requested.
    async fn subscribe(&mut self, channel: &Channel) -> Result<Option<lapin::Consumer>, Trouble> {
        let wanted = *self.wanted.borrow_and_update();
        let Intake::AtMost(prefetch) = wanted else {
            self.board.post(State::Paused);
            return Ok(None);
        };

        self.subscription.count += 1;
        let patience = self.plan.settings.connect_timeout;
        let late = |_| Trouble::Unreachable(format!("no answer to the subscription in {patience:?}"));
        let stream = timeout(patience, self.consume(channel, prefetch)).await.map_err(late)??;
        self.board.post(State::Ready);
        Ok(Some(stream))
    }

    async fn consume(&self, channel: &Channel, prefetch: u16) -> Result<lapin::Consumer, Trouble> {
        let Subscription { queue, tag, count } = &self.subscription;
        channel
            .basic_qos(prefetch, BasicQosOptions::default())
            .await
            .map_err(|error| self.explain(&error))?;

        let tag = if *count == 1 { tag.clone() } else { format!("{tag}-{count}") };
        let (queue, tag) = (short(queue)?, short(&tag)?);
        let consuming =
            channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
        consuming.await.map_err(|error| self.explain(&error))
    }

    /// Explains why the broker refused the subscription.
    fn explain(&self, error: &lapin::Error) -> Trouble {
        if code_of(error) != Some(404) {
            return self.plan.explain(error);
        }
        Trouble::Misconfigured(format!(
            "the queue {:?} does not exist: create it, or add it to a topology that is set to `declare` ({})",
            self.subscription.queue,
            broker_said(error)
        ))
    }

    /// Ends a subscription and requeues the deliveries that were not taken.
    async fn unsubscribe(&self, channel: &Channel, stream: Option<lapin::Consumer>) -> Result<(), String> {
        let unsubscribing = async {
            if let Some(mut stream) = stream {
                channel.basic_cancel(stream.tag(), BasicCancelOptions::default()).await?;
                while let Some(delivery) = stream.next().await {
                    requeue(delivery?.acker).await?;
                }
            }
            // A delivery that is dropped returns to this task, which requeues it.
            while let Some(delivery) = self.arrivals.take() {
                drop(delivery);
            }
            Ok(())
        };

        match timeout(UNSUBSCRIBE_TIMEOUT, unsubscribing).await {
            Ok(unsubscribed) => unsubscribed.map_err(|error: lapin::Error| broker_said(&error)),
            Err(_) => Err(format!("the subscription could not be ended within {UNSUBSCRIBE_TIMEOUT:?}")),
        }
    }

    /// Declares missing parts of the topology. If a binding is removed, the subscription does not end, although the
    /// binding's messages no longer arrive.
    async fn declare_again(&self, connection: &Connection) {
        if self.plan.topology.mode != TopologyMode::Declare {
            return;
        }
        if let Err(trouble) = self.plan.declare_again(connection).await {
            // Deliveries still arrive, so keep the subscription.
            let (queue, trouble) = (&self.subscription.queue, trouble.to_string());
            tracing::warn!(queue, trouble, "the topology could not be declared again");
        }
    }

    /// Checks the queue over a separate channel, because a check of a missing queue closes the channel.
    async fn queue_status(&self, connection: &Connection) -> Result<QueueStatus, String> {
        let asking = async {
            let channel = connection.create_channel().await?;
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = self.subscription.queue.as_str().into();
            let queue = channel.queue_declare(queue, options, FieldTable::default()).await?;
            channel.close(200, "OK".into()).await?;
            Ok(QueueStatus { waiting: queue.message_count(), consumers: queue.consumer_count() })
        };
        asking.await.map_err(|error: lapin::Error| broker_said(&error))
    }
}

impl ServedConnection {
    fn new(stream: Option<lapin::Consumer>, watchdog: Watchdog, check_interval: Duration) -> Self {
        let every = check_interval.max(SHORTEST_CHECK);
        let mut check = interval_at(Instant::now() + every, every);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);

        Self { stream, gone: CancellationToken::new(), held: Arc::default(), watchdog, check, stopped: false }
    }
}

/// Waits for the next delivery of a subscription. Never completes if there is no subscription.
async fn next_of(stream: &mut Option<lapin::Consumer>) -> Option<lapin::Result<lapin::message::Delivery>> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

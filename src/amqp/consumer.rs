//! Consuming with acknowledgements.
//!
//! # Flow
//!
//! The supervisor connects, subscribes to the queue and passes deliveries on. After any error, after the broker
//! cancelled the consumer, and at the end of the stream it connects and subscribes anew; what was not
//! acknowledged comes again, marked as redelivered.
//!
//! # The watchdog
//!
//! A consumer can fall silent without an error. So a silent one looks at its queue now and then: if the broker
//! knows no consumer of it, or if at two looks in a row messages wait while nothing is held here and
//! nothing came in between, the connection is made anew.
//!
//! At the same times a topology in mode `declare` is declared again: a queue that lost its binding looks idle.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use lapin::{
    Acker, BasicProperties, Channel, Connection,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
        BasicRejectOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    AmqpSettings, State, Topology, TopologyMode,
    connection::{Link, Plan, Trouble, Weather, broker_said, code_of},
    state::{Board, Pauses, wait_closed, wait_ready},
    topology::short,
};

/// The longest that ending the subscription may take, and putting a delivery back.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Takes deliveries from one queue, over connections of its own. Dropping it closes them.
#[derive(Debug)]
pub struct Consumer {
    inbox: Arc<Inbox>,
    states: watch::Receiver<State>,
    intake: watch::Sender<Intake>,
    taking: watch::Receiver<bool>,
    stop: CancellationToken,
    _end: DropGuard,
    end: CancellationToken,
}

/// One message from the queue, to be settled by [`ack`](Self::ack), [`reject`](Self::reject) or
/// [`requeue`](Self::requeue). One that is dropped is put back.
///
/// Settling answers whether the broker was told. It was not if the connection of the delivery is gone: then
/// the message comes again.
pub struct Delivery {
    /// The body.
    pub body: Vec<u8>,
    /// The AMQP property `type`.
    pub message_type: Option<String>,
    /// The AMQP property `message_id`.
    pub message_id: Option<String>,
    /// How often a quorum queue has handed it out before; 0 for other queues.
    pub delivery_count: u32,
    /// The MIME type of the body.
    pub content_type: Option<String>,
    /// The headers that are strings.
    pub headers: Vec<(String, String)>,
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    held: Held,
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
        let states = board.watch();
        let inbox = Arc::new(Inbox::default());
        let (put_back, dropped) = mpsc::unbounded_channel();
        let (taking, still_taking) = watch::channel(true);
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let (intake, wanted) = watch::channel(Intake::AtMost(prefetch));
        let subscription = Subscription { queue, tag, count: 0 };
        let supervisor = Supervisor {
            plan,
            subscription,
            board,
            inbox: inbox.clone(),
            put_back,
            dropped,
            wanted,
            taking,
            stop: stop.clone(),
            end: end.clone(),
        };
        tokio::spawn(supervisor.run());
        Self { inbox, states, intake, taking: still_taking, stop, _end: end.clone().drop_guard(), end }
    }

    /// The next delivery; none after [`stop_taking`](Self::stop_taking) or [`close`](Self::close). Cancel safe.
    pub async fn next(&self) -> Option<Delivery> {
        loop {
            let arrived = self.inbox.arrived.notified();
            if self.stop.is_cancelled() {
                return None;
            }
            if let Some(delivery) = self.inbox.take() {
                return Some(delivery);
            }
            tokio::select! {
                () = arrived => {}
                () = self.stop.cancelled() => {}
                () = wait_closed(self.states.clone()) => return None,
            }
        }
    }

    /// Whether it is subscribed to the queue.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.states.borrow() == State::Ready
    }

    /// Waits until subscribed. False once that can never be again, after [`close`](Self::close).
    pub async fn ready(&self) -> bool {
        wait_ready(self.states.clone()).await
    }

    /// The state, and every change of it from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        let mut states = self.states.clone();
        states.mark_unchanged();
        states
    }

    /// Takes nothing more for now, and puts back what was not handed out by [`next`](Self::next); the connection stays, and
    /// deliveries that were handed out can be settled. Returns at once.
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

    /// Ends the subscription: [`next`](Self::next) gives nothing more and what it had not yet given is put back.
    /// Deliveries that were given can still be settled, until [`close`](Self::close) or an error.
    ///
    /// Ends within five seconds, whatever the broker does.
    pub async fn stop_taking(&self) {
        self.stop.cancel();
        // An error means that the supervisor is gone, and its subscription with it.
        let _ = self.taking.clone().wait_for(|taking| !taking).await;
        while let Some(delivery) = self.inbox.take() {
            drop(delivery);
        }
    }

    /// Closes the connection, in two seconds at most; what is not settled by now comes again, to somebody.
    pub async fn close(&self) {
        self.stop.cancel();
        self.end.cancel();
        wait_closed(self.states.clone()).await;
    }
}

impl Delivery {
    fn new(delivery: lapin::message::Delivery, held: Held) -> Self {
        let properties = delivery.properties;
        let text = |property: &Option<lapin::types::ShortString>| property.as_ref().map(ToString::to_string);
        let headers = properties.headers().iter().flat_map(|table| table.inner());
        Self {
            message_type: text(properties.kind()),
            message_id: text(properties.message_id()),
            delivery_count: delivery_count(&properties),
            content_type: text(properties.content_type()),
            headers: headers.filter_map(|(name, value)| Some((name.to_string(), string(value)?))).collect(),
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            redelivered: delivery.redelivered,
            body: delivery.data,
            held,
        }
    }

    /// Done: the broker forgets the message. False if it could not be told.
    pub async fn ack(self) -> bool {
        let ack = |acker: Acker| async move { acker.ack(BasicAckOptions::default()).await };
        self.held.settle(ack).await
    }

    /// Hopeless: the broker drops or dead-letters the message. False if it could not be told.
    pub async fn reject(self) -> bool {
        let reject = |acker: Acker| async move { acker.reject(BasicRejectOptions { requeue: false }).await };
        self.held.settle(reject).await
    }

    /// Not now: the broker delivers the message again, at once. False if it could not be told.
    ///
    /// Not a means to retry: it loops without a pause, and newer brokers do not count it towards the
    /// delivery limit.
    pub async fn requeue(self) -> bool {
        self.held.settle(requeue).await
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message_id", &self.message_id)
            .field("message_type", &self.message_type)
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("redelivered", &self.redelivered)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

fn delivery_count(properties: &BasicProperties) -> u32 {
    let count = properties.headers().as_ref().and_then(|table| table.inner().get("x-delivery-count"));
    let count = match count {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).ok(),
        Some(AMQPValue::LongInt(count)) => u32::try_from(*count).ok(),
        Some(AMQPValue::LongUInt(count)) => Some(*count),
        Some(AMQPValue::ShortShortUInt(count)) => Some(u32::from(*count)),
        Some(AMQPValue::ShortUInt(count)) => Some(u32::from(*count)),
        _ => None,
    };
    count.unwrap_or(0)
}

async fn requeue(acker: Acker) -> lapin::Result<bool> {
    acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await
}

fn string(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// The right to settle one delivery, once, on the connection it came over.
struct Held {
    acker: Option<Acker>,
    gone: CancellationToken,
    count: Arc<AtomicUsize>,
    put_back: mpsc::UnboundedSender<Acker>,
}

impl Held {
    fn stale(&self) -> bool {
        self.gone.is_cancelled() || self.acker.as_ref().is_none_or(|acker| !acker.usable())
    }

    async fn settle<F>(mut self, settle: impl FnOnce(Acker) -> F) -> bool
    where
        F: Future<Output = lapin::Result<bool>>,
    {
        let Some(acker) = self.acker.take() else {
            return false;
        };
        tokio::select! {
            biased;
            () = self.gone.cancelled() => false,
            told = settle(acker) => told.unwrap_or(false),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(acker) = self.acker.take().filter(|_| !self.gone.is_cancelled()) {
            let _ = self.put_back.send(acker);
        }
    }
}

/// What came and was not yet asked for. No lock is held over an await: a `next` that nobody polls any more must
/// not keep [`Consumer::stop_taking`] waiting.
#[derive(Debug, Default)]
struct Inbox {
    deliveries: Mutex<VecDeque<Delivery>>,
    arrived: Notify,
}

impl Inbox {
    fn put(&self, delivery: Delivery) {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner).push_back(delivery);
        self.arrived.notify_one();
    }

    /// The oldest that is not stale.
    fn take(&self) -> Option<Delivery> {
        let mut deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(delivery) = deliveries.pop_front() {
            if !delivery.held.stale() {
                if !deliveries.is_empty() {
                    self.arrived.notify_one();
                }
                return Some(delivery);
            }
        }
        None
    }
}

/// What a consumer is to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intake {
    Nothing,
    /// So many unsettled deliveries at a time; 0 means any number.
    AtMost(u16),
}

struct Subscription {
    queue: String,
    tag: String,
    /// How often it was subscribed to. Part of the tag: what is still held of one subscription doesn't count for the next.
    count: u64,
}

struct Supervisor {
    plan: Arc<Plan>,
    subscription: Subscription,
    board: Board,
    inbox: Arc<Inbox>,
    put_back: mpsc::UnboundedSender<Acker>,
    dropped: mpsc::UnboundedReceiver<Acker>,
    wanted: watch::Receiver<Intake>,
    taking: watch::Sender<bool>,
    stop: CancellationToken,
    end: CancellationToken,
}

/// None when asked to end or to stop before it is done.
async fn unless_stopped<T>(
    end: &CancellationToken,
    stop: &CancellationToken,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        () = end.cancelled() => None,
        () = stop.cancelled() => None,
        done = work => Some(done),
    }
}

/// The next delivery of a subscription; never where there is none.
async fn next_of(stream: &mut Option<lapin::Consumer>) -> Option<lapin::Result<lapin::message::Delivery>> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// Why a connection is no longer served.
enum End {
    Asked,
    Lost(String),
}

impl Supervisor {
    async fn run(mut self) {
        let (min, max) = (self.plan.settings.reconnect_min, self.plan.settings.reconnect_max);
        let mut pauses = Pauses::new(min, max);
        // One that is asked to stop before it is subscribed, or after it lost what it held, has nothing to do.
        let (end, stop) = (self.end.clone(), self.stop.clone());
        while let Some(opened) = unless_stopped(&end, &stop, self.open()).await {
            let lived = match opened {
                Ok((mut link, stream)) => {
                    let since = Instant::now();
                    let end = self.serve(&mut link, stream).await;
                    if let End::Lost(reason) = &end {
                        self.board.post(State::Disconnected { reason: reason.clone() });
                    }
                    link.close().await;
                    if matches!(end, End::Asked) {
                        break;
                    }
                    since.elapsed()
                }
                Err(trouble) => {
                    self.board.post(trouble.into());
                    Duration::ZERO
                }
            };
            if unless_stopped(&end, &stop, sleep(pauses.after(lived))).await.is_none() {
                break;
            }
        }
        self.taking.send_replace(false);
        self.board.post(State::Closed);
    }

    async fn open(&mut self) -> Result<(Link, Option<lapin::Consumer>), Trouble> {
        let link = self.plan.open().await?;
        self.subscription.count = 0;
        let stream = self.subscribe(&link.channel).await?;
        Ok((link, stream))
    }

    /// Subscribes, or takes nothing, as wanted.
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
        let explain = |error: lapin::Error| match code_of(&error) {
            Some(404) => Trouble::Misconfigured(format!(
                "the queue {queue:?} does not exist: create it, or name it in a topology set to `declare` ({})",
                broker_said(&error)
            )),
            _ => self.plan.explain(&error),
        };
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(explain)?;
        let tag = if *count == 1 { tag.clone() } else { format!("{tag}-{count}") };
        let (queue, tag) = (short(queue)?, short(&tag)?);
        let options = BasicConsumeOptions::default();
        channel.basic_consume(queue, tag, options, FieldTable::default()).await.map_err(explain)
    }

    /// Passes deliveries on until the connection is lost or nobody wants it any more.
    async fn serve(&mut self, link: &mut Link, mut stream: Option<lapin::Consumer>) -> End {
        let gone = CancellationToken::new();
        let _gone = gone.clone().drop_guard();
        let count = Arc::new(AtomicUsize::new(0));
        let mut watchdog = Watchdog::default();
        let patience = self.plan.settings.connect_timeout;
        let every = self.plan.settings.consumer_check.max(Duration::from_millis(10));
        let mut check = interval_at(Instant::now() + every, every);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped = false;
        loop {
            tokio::select! {
                biased;
                () = self.end.cancelled() => return End::Asked,
                () = self.stop.cancelled(), if !stopped => {
                    stopped = true;
                    let unsubscribed = tokio::select! {
                        biased;
                        () = self.end.cancelled() => return End::Asked,
                        unsubscribed = self.unsubscribe(&link.channel, stream.take()) => unsubscribed,
                    };
                    self.taking.send_replace(false);
                    if let Err(reason) = unsubscribed {
                        return End::Lost(reason);
                    }
                }
                Ok(()) = self.wanted.changed(), if !stopped => {
                    watchdog = Watchdog::default();
                    if let Err(reason) = self.unsubscribe(&link.channel, stream.take()).await {
                        return End::Lost(reason);
                    }
                    match self.subscribe(&link.channel).await {
                        Ok(subscribed) => stream = subscribed,
                        Err(Trouble::Unreachable(reason) | Trouble::Misconfigured(reason)) => {
                            return End::Lost(reason);
                        }
                    }
                }
                Some(acker) = self.dropped.recv() => {
                    let queue = &self.subscription.queue;
                    tracing::debug!(queue, "a delivery was dropped unsettled: put back");
                    let _ = timeout(LAST_WORDS, requeue(acker)).await;
                }
                weather = link.event() => match weather {
                    Weather::Lost(reason) => return End::Lost(reason),
                    // It may be one that only looked at the queue.
                    Weather::ChannelClosed(reason) if !link.alive() => return End::Lost(reason),
                    Weather::ChannelClosed(_) | Weather::Blocked(_) | Weather::Unblocked => {}
                },
                delivery = next_of(&mut stream), if !stopped => match delivery {
                    Some(Ok(delivery)) => {
                        watchdog.delivered();
                        count.fetch_add(1, Ordering::Relaxed);
                        let acker = Some(delivery.acker.clone());
                        let (gone, count, put_back) = (gone.clone(), count.clone(), self.put_back.clone());
                        let held = Held { acker, gone, count, put_back };
                        self.inbox.put(Delivery::new(delivery, held));
                    }
                    Some(Err(error)) => return End::Lost(broker_said(&error)),
                    None => {
                        let reason = "the subscription ended, as when its queue is deleted";
                        return End::Lost(reason.to_owned());
                    }
                },
                _ = check.tick(), if !stopped && stream.is_some() => {
                    let (end, stop) = (self.end.clone(), self.stop.clone());
                    let glance = timeout(patience, self.glance(&link.connection));
                    // A stop needn't wait for a broker that is silent.
                    let Some(glance) = unless_stopped(&end, &stop, glance).await else { continue };
                    let glance = glance.unwrap_or_else(|_| Err("no answer about the queue".to_owned()));
                    let held = count.load(Ordering::Relaxed);
                    if let Err(reason) = glance.and_then(|glance| watchdog.look(&glance, held)) {
                        return End::Lost(reason);
                    }
                    tokio::select! {
                        biased;
                        () = self.end.cancelled() => return End::Asked,
                        () = self.stop.cancelled() => continue,
                        () = self.declare_again(&link.connection) => {}
                    }
                }
            }
        }
    }

    /// Ends a subscription and puts back what the client had received and nobody has taken over.
    async fn unsubscribe(&self, channel: &Channel, stream: Option<lapin::Consumer>) -> Result<(), String> {
        let unsubscribing = async {
            if let Some(mut stream) = stream {
                channel.basic_cancel(stream.tag(), BasicCancelOptions::default()).await?;
                while let Some(delivery) = stream.next().await {
                    requeue(delivery?.acker).await?;
                }
            }
            // Dropped, it comes back to be put back.
            while let Some(delivery) = self.inbox.take() {
                drop(delivery);
            }
            Ok(())
        };
        match timeout(LAST_WORDS, unsubscribing).await {
            Ok(unsubscribed) => unsubscribed.map_err(|error: lapin::Error| broker_said(&error)),
            Err(_) => Err(format!("the subscription could not be ended in {LAST_WORDS:?}")),
        }
    }

    /// Makes what is missing of the topology: a binding that is removed under a living subscription ends nothing, and no
    /// message comes any more.
    async fn declare_again(&self, connection: &Connection) {
        if self.plan.topology.mode != TopologyMode::Declare {
            return;
        }
        if let Err(trouble) = self.plan.declare_again(connection).await {
            // What is delivered is delivered all the same, so the subscription stays.
            let trouble = trouble.to_string();
            tracing::warn!(
                queue = self.subscription.queue,
                trouble,
                "the topology could not be declared again"
            );
        }
    }

    /// A look at the queue over a channel of its own, since looking for a queue that is gone closes the channel.
    async fn glance(&self, connection: &Connection) -> Result<Glance, String> {
        let looking = async {
            let channel = connection.create_channel().await?;
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = self.subscription.queue.as_str().into();
            let queue = channel.queue_declare(queue, options, FieldTable::default()).await?;
            channel.close(200, "OK".into()).await?;
            Ok(Glance { waiting: queue.message_count(), consumers: queue.consumer_count() })
        };
        looking.await.map_err(|error: lapin::Error| broker_said(&error))
    }
}

/// What the broker says about a queue.
struct Glance {
    waiting: u32,
    consumers: u32,
}

/// Tells a consumer that has nothing to do from one that was forgotten.
#[derive(Default)]
struct Watchdog {
    suspicious: bool,
    delivered: bool,
}

impl Watchdog {
    fn delivered(&mut self) {
        self.delivered = true;
    }

    /// One look; an error when it was forgotten. A single look is no proof: messages may be on their way.
    fn look(&mut self, glance: &Glance, held: usize) -> Result<(), String> {
        let silent = !std::mem::take(&mut self.delivered);
        if glance.consumers == 0 && silent {
            return Err("RabbitMQ does not know the consumer any more".to_owned());
        }
        let suspicious = silent && held == 0 && glance.waiting > 0;
        if std::mem::replace(&mut self.suspicious, suspicious) && suspicious {
            return Err(format!("{} messages wait and none is delivered", glance.waiting));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glance(waiting: u32, consumers: u32) -> Glance {
        Glance { waiting, consumers }
    }

    #[test]
    fn two_looks_at_waiting_messages_with_nothing_held_and_nothing_delivered_are_one_too_many() {
        let mut watchdog = Watchdog::default();
        assert!(watchdog.look(&glance(5, 1), 0).is_ok());
        assert!(watchdog.look(&glance(5, 1), 0).is_err());
    }

    #[test]
    fn a_delivery_or_a_held_message_or_an_empty_queue_clears_the_suspicion() {
        let mut watchdog = Watchdog::default();
        assert!(watchdog.look(&glance(5, 1), 0).is_ok());
        watchdog.delivered();
        assert!(watchdog.look(&glance(5, 1), 0).is_ok());
        assert!(watchdog.look(&glance(5, 1), 0).is_ok());
        assert!(watchdog.look(&glance(5, 1), 1).is_ok());
        assert!(watchdog.look(&glance(5, 1), 0).is_ok());
        assert!(watchdog.look(&glance(0, 1), 0).is_ok());
        assert!(watchdog.look(&glance(5, 1), 0).is_ok());
    }

    #[test]
    fn a_consumer_that_the_broker_does_not_know_is_forgotten_at_the_first_look() {
        assert!(Watchdog::default().look(&glance(0, 0), 0).is_err());
    }
}

//! Handles each message until it is settled.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, broadcast, watch},
    time::Instant,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::Instrument;

use crate::{
    amqp::{Delivery, Publication, Published, Publisher, State},
    observe::{Events, LastError, repeats::Repeats, trace},
    receive::{
        decide::{After, Delays, Progress, ReceiveStep, RetryRoom, next_step},
        delayed::{DelayedMessages, Turn},
        event::ReceiverEvent,
        handled::Handled,
        intake::{MessageIntake, PrefetchRoom},
        key_order::{KeyOrder, Retried},
        metrics::ReceiverMetrics,
        outage::Outage,
        settings::ReceiverSettings,
        subscriptions::{Subscriptions, TypeSubscription},
        taken::TakenMessage,
    },
};

/// The state that all messages of a receiver share.
pub(crate) struct Worker {
    settings: ReceiverSettings,
    subscriptions: Subscriptions,
    metrics: ReceiverMetrics,
    events: Events<ReceiverEvent>,
    intake: Arc<MessageIntake>,
    order: KeyOrder<TakenMessage>,
    delayed: Mutex<DelayedMessages>,
    permits: Semaphore,
    in_flight: AtomicUsize,
    outage: Outage,
    repeats: Repeats,
    last_error: Mutex<Option<LastError>>,
    links: OnceLock<Links>,
    /// When cancelled, the receiver takes no more messages and tries no failed message again.
    stop: CancellationToken,
    /// When cancelled, messages that are being handled are abandoned.
    abandon: CancellationToken,
}

/// The connections of a receiver that has been started.
pub(super) struct Links {
    pub(super) publisher: Publisher,
    pub(super) publishing: watch::Receiver<State>,
    pub(super) consuming: watch::Receiver<State>,
}

/// Counts a message as being handled, until this value is dropped.
struct HandledNow<'a>(&'a AtomicUsize);

impl Drop for HandledNow<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    pub(super) fn new(subscriptions: Subscriptions, settings: ReceiverSettings) -> Self {
        let intake = MessageIntake::new(settings.prefetch, settings.prefetch_bytes, Instant::now());
        Self {
            metrics: ReceiverMetrics::register(&settings.queue),
            events: Events::default(),
            intake: Arc::new(intake),
            order: KeyOrder::new(settings.retry_held),
            delayed: Mutex::new(DelayedMessages::new(settings.delay)),
            permits: Semaphore::new(settings.concurrency.min(Semaphore::MAX_PERMITS)),
            in_flight: AtomicUsize::new(0),
            outage: Outage::default(),
            repeats: Repeats::default(),
            last_error: Mutex::default(),
            links: OnceLock::new(),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            subscriptions,
            settings,
        }
    }

    pub(super) fn settings(&self) -> &ReceiverSettings {
        &self.settings
    }

    pub(super) fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<ReceiverEvent> {
        self.events.subscribe()
    }

    pub(super) fn intake(&self) -> &MessageIntake {
        &self.intake
    }

    pub(super) fn repeats(&self) -> &Repeats {
        &self.repeats
    }

    pub(super) fn delayed(&self) -> &Mutex<DelayedMessages> {
        &self.delayed
    }

    /// Blocks the key of a message that is tried again, until the guard is dropped.
    pub(super) fn hold_key<'a>(&'a self, taken: &'a TakenMessage) -> Retried<'a, TakenMessage> {
        self.order.retry(taken.key.as_deref())
    }

    /// Whether a message needs no more work, because the receiver stops or the broker delivers the message again.
    fn is_over(&self, taken: &TakenMessage) -> bool {
        self.stop.is_cancelled() || taken.delivery.is_stale()
    }

    pub(super) fn outage(&self) -> &Outage {
        &self.outage
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    pub(super) fn abandon(&self) -> &CancellationToken {
        &self.abandon
    }

    pub(super) fn metrics(&self) -> &ReceiverMetrics {
        &self.metrics
    }

    pub(super) fn report_ready(&self, ready: bool) {
        self.metrics.ready(ready);
    }

    pub(super) fn connect(&self, links: Links) {
        // Setting the links can't fail, because a receiver is started only once.
        let _ = self.links.set(links);
    }

    /// The states of the consumer and of the publisher.
    pub(super) fn links(&self) -> Option<(State, State)> {
        let links = self.links.get()?;
        Some((links.consuming.borrow().clone(), links.publishing.borrow().clone()))
    }

    /// Publishes a copy. Returns `None` if there is no answer.
    pub(super) async fn publish_once(&self, copy: &Publication) -> Option<Published> {
        let publisher = &self.links.get()?.publisher;
        publisher.publish(vec![copy.clone()]).await.pop()
    }

    pub(super) fn unavailable(&self) -> Option<String> {
        self.outage.reason()
    }

    pub(super) fn retried(&self) -> usize {
        self.order.held()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn last_error(&self) -> Option<LastError> {
        self.last_error.lock().clone()
    }

    /// Accepts a message, which is settled by a new task, or by the task that already works on the message's key.
    pub(super) fn accept(self: &Arc<Self>, delivery: Delivery, tasks: &TaskTracker) {
        let (taken, room) = TakenMessage::read(delivery, &self.intake);
        if room == PrefetchRoom::Less {
            self.outage.changed.notify_one();
        }
        self.announce(ReceiverEvent::Taken(taken.name.clone()));
        let key = taken.key.clone();
        let first = match &key {
            Some(key) => self.order.enter(key, taken),
            None => Some(taken),
        };
        if let Some(first) = first {
            tasks.spawn(self.clone().settle_all(key, first));
        }
    }

    /// Settles a message, and then the messages of its key that arrive meanwhile.
    async fn settle_all(self: Arc<Self>, key: Option<String>, first: TakenMessage) {
        let mut next = Some(first);
        while let Some(taken) = next {
            let name = taken.name.clone();
            // The broker delivers an abandoned message again.
            if self.abandon.run_until_cancelled(self.settle(taken)).await.is_none() {
                self.announce(ReceiverEvent::Returned(name));
            }
            next = key.as_deref().and_then(|key| self.order.next(key));
        }
    }

    async fn settle(&self, taken: TakenMessage) {
        if self.is_over(&taken) {
            return self.give_back(taken);
        }
        let Some(subscription) = self.subscriptions.find(&taken.message.message_type) else {
            return self.settle_unknown(taken).await;
        };
        if self.turn(&taken) == Turn::Follow {
            let why = "an earlier message of the same key waits in the delay queue".to_owned();
            return self.delay(taken, why, Delays::AsBefore).await;
        }

        let mut failures = Failures::none();
        let mut outage = None;
        loop {
            let Some(handled) = self.call(&taken, subscription).await else {
                return self.give_back(taken);
            };

            // The time of an outage doesn't count as time in which the message failed.
            let is_unavailable = matches!(handled, Handled::Unavailable(_));
            if !is_unavailable && outage.take().is_some() {
                failures = Failures::none();
            }
            let repeated = handled == Handled::Repeated;
            let progress = failures.one_more(taken.message.delays, self.order.room(taken.key.as_deref()));
            let after = match next_step(handled, progress, &self.settings) {
                ReceiveStep::Acknowledge => return self.acknowledge(taken, repeated).await,
                ReceiveStep::Delay(reason) => return self.delay(taken, reason, Delays::OneMore).await,
                ReceiveStep::DeadLetter(cause, reason) => {
                    return self.dead_letter(taken, cause, &reason).await;
                }
                ReceiveStep::RetryAfter(pause, reason) => self.retry_after(&taken, pause, reason).await,
                ReceiveStep::AwaitDependency(pause, reason) => {
                    self.unavailable_for(&taken, &reason);
                    match &outage {
                        None => outage = Some(self.outage.enter(&reason)),
                        Some(outage) => outage.still(&reason),
                    }
                    self.wait(&taken, pause).await
                }
            };
            if after == After::GiveUp {
                return self.give_back(taken);
            }
        }
    }

    /// Whether a message must go to the delay queue because an earlier message of its key is there.
    fn turn(&self, taken: &TakenMessage) -> Turn {
        match (&taken.key, taken.id()) {
            (Some(key), Some(id)) => self.delayed.lock().turn(key, &id, Instant::now()),
            _ => Turn::Handle,
        }
    }

    /// Calls the function as soon as `concurrency` permits the call. Returns `None` if the receiver stops before that,
    /// or if the broker delivers the message again anyway.
    async fn call(&self, taken: &TakenMessage, subscription: &TypeSubscription) -> Option<Handled> {
        let permit = self.stop.run_until_cancelled(self.permits.acquire()).await?;
        if self.is_over(taken) {
            return None;
        }

        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let _in_flight = HandledNow(&self.in_flight);
        let began = Instant::now();
        let message = &taken.message;
        let span = trace::receive(&message.message_type, message.id, &self.settings.queue, &message.headers);
        let (subscription, inbox, received) = (subscription.clone(), self.settings.inbox, message.clone());
        // The call includes decoding, which may run the user's code, so the whole call runs inside the task.
        let call = async move { subscription.call(received, inbox).await }.instrument(span.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(call));
        let handled = match tokio::time::timeout(self.settings.time_limit, task).await {
            Ok(Ok(handled)) => handled,
            Ok(Err(error)) if error.is_panic() => Handled::Transient("the function panicked".into()),
            Ok(Err(_)) => return None,
            Err(_) => {
                Handled::Transient(format!("no result after {:?} (time_limit)", self.settings.time_limit))
            }
        };
        drop(permit);

        self.metrics.call(&handled, began.elapsed(), message);
        if let Some(error_type) = handled.error_type() {
            trace::failed(&span, error_type);
        }
        Some(handled)
    }

    /// Counts an event and sends it to the subscribers.
    pub(super) fn announce(&self, event: ReceiverEvent) {
        self.metrics.record(&event);
        let (messages, bytes) = self.intake.held();
        self.metrics.held(messages, bytes);
        self.events.emit(event);
    }

    pub(super) fn failed(&self, error: &str) {
        let error = LastError { at: Some(SystemTime::now()), error: error.to_owned() };
        *self.last_error.lock() = Some(error);
    }
}

/// The failed tries of one message since the receiver took the message.
struct Failures {
    tries: u32,
    first: Instant,
}

impl Failures {
    fn none() -> Self {
        Self { tries: 0, first: Instant::now() }
    }

    fn one_more(&mut self, delays: u32, room: RetryRoom) -> Progress {
        if self.tries == 0 {
            self.first = Instant::now();
        }
        self.tries = self.tries.saturating_add(1);
        Progress { tries: self.tries, tried_for: self.first.elapsed(), delays, room }
    }
}

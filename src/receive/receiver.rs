//! The receiver takes messages, distributes them to tasks, and stops in order.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    sync::broadcast,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    amqp::{AmqpSettings, Consumer, Publisher, State},
    receive::{
        event::ReceiverEvent,
        settings::{InvalidReceiver, ReceiverSettings},
        status::ReceiverStatus,
        subscriptions::Subscriptions,
        worker::{Links, Worker},
    },
};

/// The last part of the grace period, as a fraction, in which unfinished messages return to the queue.
const LAST_PART: f64 = 0.2;
/// How long closing the connections may take after the grace period.
const FAREWELL: Duration = Duration::from_millis(500);
/// The interval at which the prefetch is adapted to the sizes of messages, even if nothing else happens.
const EVERY: Duration = Duration::from_secs(1);

/// A receiver that is ready to start.
pub struct Receiver {
    worker: Arc<Worker>,
    amqp: AmqpSettings,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("queue", &self.worker.settings().queue)
            .field("broker", &self.amqp)
            .finish_non_exhaustive()
    }
}

/// A receiver that is running. Dropping this value stops the receiver without a grace period.
pub struct RunningReceiver {
    worker: Arc<Worker>,
    consumer: Arc<Consumer>,
    publisher: Publisher,
    tasks: TaskTracker,
    /// The tasks that must not end before a stop.
    essential: JoinSet<()>,
}

impl fmt::Debug for RunningReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningReceiver")
            .field("queue", &self.worker.settings().queue)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// Creates a receiver that gives the messages of a queue to the functions in `subscriptions`.
    ///
    /// # Errors
    /// [`InvalidReceiver`] lists every problem, each in a sentence.
    pub fn new(
        amqp: AmqpSettings,
        subscriptions: Subscriptions,
        settings: ReceiverSettings,
    ) -> Result<Self, InvalidReceiver> {
        let mut problems = match settings.validate() {
            Ok(()) => Vec::new(),
            Err(InvalidReceiver(problems)) => problems,
        };
        problems.extend(subscriptions.problems());
        if !problems.is_empty() {
            return Err(InvalidReceiver(problems));
        }
        Ok(Self { worker: Arc::new(Worker::new(subscriptions, settings)), amqp })
    }

    /// Returns a channel that receives the events of messages from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<ReceiverEvent> {
        self.worker.subscribe()
    }

    /// Returns a handle that reports the receiver's state.
    #[must_use]
    pub fn status(&self) -> ReceiverStatus {
        ReceiverStatus::new(self.worker.clone())
    }

    /// Starts the receiver, which connects in the background. Must be called inside a Tokio runtime.
    #[must_use]
    pub fn start(self) -> RunningReceiver {
        let Self { worker, amqp } = self;
        let settings = worker.settings();
        let topology = settings.topology(&worker.subscriptions().types());
        let publisher = Publisher::start(amqp.clone(), topology.clone());
        let consumer = Arc::new(Consumer::start(
            amqp,
            topology,
            settings.queue.clone(),
            worker.intake().prefetch(Instant::now()),
            "outbox-receiver".into(),
        ));
        worker.connect(Links {
            publisher: publisher.clone(),
            publishing: publisher.subscribe(),
            consuming: consumer.subscribe(),
        });

        let tasks = TaskTracker::new();
        let mut essential = JoinSet::new();
        essential.spawn(open_and_close(consumer.clone(), worker.clone()));
        essential.spawn(take(consumer.clone(), worker.clone(), tasks.clone()));
        RunningReceiver { worker, consumer, publisher, tasks, essential }
    }

    /// Runs until `stop` is cancelled, then stops in order, within the grace period.
    pub async fn run(self, stop: CancellationToken) {
        let running = self.start();
        stop.cancelled().await;
        running.stop().await;
    }
}

impl RunningReceiver {
    /// Returns a channel that receives the events of messages from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<ReceiverEvent> {
        self.worker.subscribe()
    }

    /// Returns a handle that reports the receiver's state.
    #[must_use]
    pub fn status(&self) -> ReceiverStatus {
        ReceiverStatus::new(self.worker.clone())
    }

    /// Whether messages are being received.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.consumer.is_ready() && self.publisher.is_ready()
    }

    /// Waits until messages are being received. Returns false if the receiver was stopped before that.
    pub async fn ready(&self) -> bool {
        self.consumer.ready().await && self.publisher.ready().await
    }

    /// Takes no more messages. Waits up to four fifths of the grace period for the messages that are being handled, and
    /// then abandons the unfinished ones. Messages that are not settled return to the queue. A silent broker doesn't
    /// prolong the stop.
    pub async fn stop(mut self) {
        let grace = self.worker.settings().grace;
        let deadline = Instant::now() + grace;
        self.worker.stop().cancel();

        // Messages that are being handled may finish before the deadline.
        let unfinished = async {
            self.consumer.stop_taking().await;
            self.tasks.close();
            self.tasks.wait().await;
        };
        if timeout_at(deadline - grace.mul_f64(LAST_PART), unfinished).await.is_err() {
            tracing::warn!("the grace period is almost over: unfinished messages return to the queue");
            self.worker.abandon().cancel();
            self.tasks.close();
            let _ = timeout_at(deadline, self.tasks.wait()).await;
        }

        // The broker delivers again every message that is not settled by now, so there is no need to wait for a silent
        // broker.
        let farewell = async {
            self.consumer.close().await;
            self.publisher.close().await;
            while self.essential.join_next().await.is_some() {}
        };
        let _ = timeout_at(deadline.max(Instant::now() + FAREWELL), farewell).await;
    }
}

impl Drop for RunningReceiver {
    fn drop(&mut self) {
        self.worker.stop().cancel();
        self.worker.abandon().cancel();
    }
}

/// Lets the consumer take as many messages as the receiver may hold, and no messages while something that a message
/// needs is unavailable. Runs until the receiver stops.
async fn open_and_close(consumer: Arc<Consumer>, worker: Arc<Worker>) {
    loop {
        match worker.unavailable() {
            Some(_) => consumer.pause(),
            None => consumer.resume(worker.intake().prefetch(Instant::now())),
        }

        let changed = worker.outage().changed.notified();
        let mut states = consumer.subscribe();
        worker.report_ready(*states.borrow_and_update() == State::Ready);
        tokio::select! {
            () = worker.stop().cancelled() => break,
            () = changed => {}
            _ = states.changed() => {}
            () = sleep(EVERY) => {}
        }
    }
    worker.report_ready(false);
}

/// Distributes messages to tasks until the consumer ends or the receiver stops.
async fn take(consumer: Arc<Consumer>, worker: Arc<Worker>, tasks: TaskTracker) {
    let stop = worker.stop().clone();
    while let Some(Some(delivery)) = stop.run_until_cancelled(consumer.next()).await {
        worker.accept(delivery, &tasks);
    }
}

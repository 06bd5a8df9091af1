//! Takes commands, distributes them to the parts of the worker, and stops the worker gracefully.

use std::{fmt, sync::Arc, time::Duration};

use document_outbox::{
    amqp::{AmqpSettings, Consumer},
    deliver::Deliver,
    dispatch::{Processor, ProcessorSettings},
};
use mongodb::Client;
use outbox_service::InvalidSettings;
use tokio::{
    sync::broadcast,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    consumer::ConsumerHistory, event::DispatcherEvent, intake, metrics, settings::DispatcherSettings,
    status::Status, stops::Stops, worker::Worker,
};

/// The last part of the grace period, during which claims are released.
const LAST_PART: f64 = 0.2;
/// How long the worker may take after the grace period to close the connection gracefully.
const FAREWELL: Duration = Duration::from_millis(500);

/// A dispatcher worker, ready to start.
pub struct Dispatcher {
    worker: Arc<Worker>,
    history: Arc<ConsumerHistory>,
    amqp: AmqpSettings,
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("broker", &self.amqp).finish_non_exhaustive()
    }
}

/// A dispatcher worker that is running.
pub struct Running {
    consumer: Arc<Consumer>,
    worker: Arc<Worker>,
    history: Arc<ConsumerHistory>,
    tasks: TaskTracker,
    /// The worker's essential tasks. None of them ends before a stop.
    essential: JoinSet<&'static str>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

/// An essential task of the worker has ended, which is a defect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} has ended, which is a defect; the worker cannot work without it")]
pub struct Ended(String);

impl Dispatcher {
    /// Prepares a worker in the process of an application. It delivers through the same kind of
    /// [`Deliver`](document_outbox::deliver::Deliver) as the inline dispatcher.
    ///
    /// ```no_run
    /// # use document_outbox::{amqp::AmqpSettings, deliver::Handlers};
    /// # use outbox_dispatcher::{Dispatcher, DispatcherSettings};
    /// # async fn run(client: mongodb::Client, handlers: Handlers) -> Result<(), Box<dyn std::error::Error>> {
    /// let amqp = AmqpSettings::new("amqp://localhost")?;
    /// let settings = DispatcherSettings::watching("shop.*")?;
    /// let dispatcher = Dispatcher::embedded(&client, handlers, amqp, settings)?.start();
    /// // …
    /// dispatcher.stop().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns [`InvalidSettings`], with a sentence for every problem.
    pub fn embedded(
        client: &Client,
        deliver: impl Deliver,
        amqp: AmqpSettings,
        settings: DispatcherSettings,
    ) -> Result<Self, InvalidSettings> {
        let processor = Processor::new(client.clone(), Arc::new(deliver), ProcessorSettings::default());
        Self::new(processor, amqp, settings)
    }

    /// Prepares a worker that delivers through `processor` and consumes commands through `consumer`.
    ///
    /// # Errors
    /// Returns [`InvalidSettings`], with a sentence for every problem.
    pub fn new(
        processor: Processor,
        amqp: AmqpSettings,
        settings: DispatcherSettings,
    ) -> Result<Self, InvalidSettings> {
        settings.validate()?;

        metrics::register();
        let worker = Arc::new(Worker::new(processor, settings));
        Ok(Self { worker, history: Arc::new(ConsumerHistory::new()), amqp })
    }

    /// Subscribes to the events of commands from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<DispatcherEvent> {
        self.worker.subscribe()
    }

    /// Returns a handle to the worker's status.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::new(self.worker.clone(), self.history.clone())
    }

    /// Starts the worker, which connects in the background. Must be called inside a Tokio runtime.
    #[must_use]
    pub fn start(self) -> Running {
        let Self { worker, history, amqp } = self;
        let settings = worker.settings();
        let consumer = Arc::new(Consumer::start(
            amqp,
            settings.topology(),
            settings.commands_queue.clone(),
            worker.prefetch(),
            "outbox-dispatcher".into(),
        ));
        // Until MongoDB has answered, no command can be processed.
        consumer.pause();

        let tasks = TaskTracker::new();
        let mut essential = JoinSet::new();
        essential.spawn(named(
            "the task that follows the consumer",
            follow_consumer(history.clone(), consumer.clone()),
        ));
        essential.spawn(named("the task that checks whether MongoDB answers", watch_mongodb(worker.clone())));
        essential.spawn(named(
            "the task that opens and closes the intake",
            intake::open_and_close(consumer.clone(), worker.clone()),
        ));
        essential.spawn(named(
            "the task that takes commands",
            intake::take(consumer.clone(), worker.clone(), tasks.clone()),
        ));

        Running { consumer, worker, history, tasks, essential }
    }

    /// Runs the worker until `stop` is cancelled, then stops it gracefully, within the grace period.
    ///
    /// # Errors
    /// Returns [`Ended`] if the worker can't continue. The worker is stopped gracefully in this case, too.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Ended> {
        let mut running = self.start();
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = running.ended() => Err(ended),
        };
        running.stop().await;
        ended
    }
}

impl Running {
    /// Subscribes to the events of commands from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<DispatcherEvent> {
        self.worker.subscribe()
    }

    /// Returns a handle to the worker's status.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::new(self.worker.clone(), self.history.clone())
    }

    /// Whether commands are being consumed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.consumer.is_ready()
    }

    /// Waits until commands are being consumed. Returns false if the worker was stopped first.
    pub async fn ready(&self) -> bool {
        self.consumer.ready().await
    }

    /// Waits until an essential task of the worker has ended, for example by a panic. A worker ends only in
    /// this way or by a stop. This method is cancel safe.
    pub async fn ended(&mut self) -> Ended {
        match self.essential.join_next().await {
            Some(Ok(name)) => Ended(name.into()),
            Some(Err(error)) if error.is_panic() => Ended("a task that panicked".into()),
            _ => Ended("every task".into()),
        }
    }

    /// Stops the worker: it takes no more commands, and continues unfinished work for four fifths of the
    /// grace period. Then it releases its claims, and unfinished commands return to the broker. A broker
    /// that doesn't answer does not prolong the stop.
    pub async fn stop(mut self) {
        let grace = self.worker.settings().grace;
        let deadline = Instant::now() + grace;
        let Stops { intake, release } = self.worker.stops();
        intake.cancel();

        // Unfinished work may continue until the last part of the grace period.
        let in_hand = async {
            self.consumer.stop_taking().await;
            self.tasks.close();
            self.tasks.wait().await;
        };
        if timeout_at(deadline - grace.mul_f64(LAST_PART), in_hand).await.is_err() {
            release.cancel();
            self.tasks.close();
            if timeout_at(deadline, self.tasks.wait()).await.is_err() {
                tracing::warn!(
                    "the grace period ended before every claim was released; the remaining claims expire with their lease"
                );
            }
        }

        // The broker redelivers commands that are not settled by now. A broker that doesn't answer does not
        // prolong the stop beyond this timeout.
        let farewell = async {
            self.consumer.close().await;
            while self.essential.join_next().await.is_some() {}
        };
        let _ = timeout_at(deadline.max(Instant::now() + FAREWELL), farewell).await;
    }
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

async fn follow_consumer(history: Arc<ConsumerHistory>, consumer: Arc<Consumer>) {
    let states = consumer.subscribe();
    history.follow(states).await;
}

async fn watch_mongodb(worker: Arc<Worker>) {
    let _ = worker.stops().intake.run_until_cancelled(worker.watch_mongodb()).await;
}

#[cfg(test)]
mod tests {
    use document_outbox::deliver::{Answer, Envelope};

    use super::*;

    struct Nobody;

    #[async_trait::async_trait]
    impl Deliver for Nobody {
        async fn deliver(&self, _: &[Envelope]) -> Vec<Answer> {
            Vec::new()
        }
    }

    /// A worker that can reach neither MongoDB nor RabbitMQ, because no server has these addresses.
    async fn dispatcher() -> Dispatcher {
        let client = mongodb::Client::with_uri_str("mongodb://127.0.0.1:1/").await.unwrap();
        let processor = Processor::new(client, Arc::new(Nobody), ProcessorSettings::default());
        let amqp = AmqpSettings::new("amqp://127.0.0.1:1/%2f").unwrap();
        Dispatcher::new(processor, amqp, DispatcherSettings::new(["shop.*".parse().unwrap()])).unwrap()
    }

    #[tokio::test]
    async fn a_worker_whose_consumer_has_ended_ends() {
        let mut running = dispatcher().await.start();
        // The consumer also closes without a request, for example if the connection's supervisor panics.
        running.consumer.close().await;
        let ended = tokio::time::timeout(Duration::from_mins(1), running.ended()).await;
        assert!(ended.expect("the worker ends").to_string().contains("has ended"));
        running.stop().await;
    }

    #[tokio::test]
    async fn a_stopped_worker_ends_without_an_error() {
        let stop = CancellationToken::new();
        let running = tokio::spawn(dispatcher().await.run(stop.clone()));
        stop.cancel();
        assert_eq!(running.await.unwrap(), Ok(()));
    }
}

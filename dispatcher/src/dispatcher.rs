//! The worker as a whole: takes commands, hands them out, stops in order.

use std::sync::Arc;

use document_outbox::{
    amqp::{AmqpSettings, Consumer},
    event::Events,
    process::Processor,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    DispatcherEvent, DispatcherSettings, InvalidSettings, Status, metrics,
    status::Standing,
    work::{Stops, Work},
};

/// A dispatcher worker, ready to start.
pub struct Dispatcher {
    work: Arc<Work>,
    standing: Arc<Standing>,
    amqp: AmqpSettings,
}

/// A dispatcher worker at work.
pub struct Running {
    consumer: Arc<Consumer>,
    work: Arc<Work>,
    standing: Arc<Standing>,
    tasks: TaskTracker,
    intake: tokio::task::JoinHandle<()>,
}

impl Dispatcher {
    /// A worker that delivers through this processor and consumes commands from this broker.
    ///
    /// # Errors
    /// [`InvalidSettings`], in a sentence.
    pub fn new(
        processor: Processor,
        amqp: AmqpSettings,
        settings: DispatcherSettings,
    ) -> Result<Self, InvalidSettings> {
        settings.validate()?;
        metrics::register();
        let work = Arc::new(Work::new(processor, settings));
        Ok(Self { work, standing: Arc::new(Standing::new()), amqp })
    }

    /// What happens to commands, from now on.
    pub fn events(&self) -> &Events<DispatcherEvent> {
        self.work.events()
    }

    /// Tells how it stands.
    pub fn status(&self) -> Status {
        Status::new(self.work.clone(), self.standing.clone())
    }

    /// Starts it; connects in the background. Must be called inside a tokio runtime.
    pub fn start(self) -> Running {
        let Self { work, standing, amqp } = self;
        let settings = work.settings();
        let consumer = Arc::new(Consumer::start(
            amqp,
            settings.topology(),
            settings.commands_queue.clone(),
            settings.prefetch,
            "outbox-dispatcher".into(),
        ));
        let states = consumer.subscribe();
        let follower = standing.clone();
        tokio::spawn(async move { follower.follow(states).await });
        let tasks = TaskTracker::new();
        let intake = tokio::spawn(take(consumer.clone(), work.clone(), tasks.clone()));
        Running { consumer, work, standing, tasks, intake }
    }

    /// Runs until `stop` is cancelled, then stops in order, within the grace period.
    pub async fn run(self, stop: CancellationToken) {
        let running = self.start();
        stop.cancelled().await;
        running.stop().await;
    }
}

impl Running {
    /// What happens to commands, from now on.
    pub fn events(&self) -> &Events<DispatcherEvent> {
        self.work.events()
    }

    /// Tells how it stands.
    pub fn status(&self) -> Status {
        Status::new(self.work.clone(), self.standing.clone())
    }

    /// Whether commands are being consumed.
    pub fn is_ready(&self) -> bool {
        self.consumer.is_ready()
    }

    /// Waits until commands are being consumed; false when it was stopped before.
    pub async fn ready(&self) -> bool {
        self.consumer.ready().await
    }

    /// Takes no more commands, and lets what is in hand go on for four fifths of the grace period. Then claims are given back,
    /// and unfinished commands to the broker.
    pub async fn stop(self) {
        let Stops { intake, release } = self.work.stops();
        let grace = self.work.settings().grace;
        intake.cancel();
        self.consumer.stop_taking().await;
        // It only ends early where the consumer did.
        let _ = self.intake.await;
        self.tasks.close();
        if tokio::time::timeout(grace.mul_f64(0.8), self.tasks.wait()).await.is_err() {
            release.cancel();
            if tokio::time::timeout(grace.mul_f64(0.2), self.tasks.wait()).await.is_err() {
                tracing::warn!(
                    "the grace period ended before every claim was given back; those end with their lease"
                );
            }
        }
        self.consumer.close().await;
    }
}

/// Hands out commands until the consumer ends or the intake is stopped. What is in flight is bounded by the prefetch.
async fn take(consumer: Arc<Consumer>, work: Arc<Work>, tasks: TaskTracker) {
    let intake = work.stops().intake.clone();
    loop {
        let delivery = tokio::select! {
            () = intake.cancelled() => return,
            delivery = consumer.next() => delivery,
        };
        match delivery {
            Some(delivery) => drop(tasks.spawn(work.clone().handle(delivery))),
            None => return,
        }
    }
}

//! Runs one rescuer from start to end. For each of its streams, the rescuer is a standby until it owns the
//! stream, and then runs the stream and the sweep concurrently.
//!
//! ```text
//!                  ┌───────── lease lost ◀───────────┐
//!                  ▼                                 │
//!   start ──▶ standing by ── lease taken ──▶ stream and sweep ── stopped ──▶ position saved, lease released
//! ```

use std::{fmt, sync::Arc};

use document_outbox::{amqp::AmqpSettings, observe::Events};
use futures::future::join_all;
use mongodb::Client;
use tokio::{
    sync::broadcast,
    task::{JoinError, JoinHandle},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    commands::{BrokerCommands, Commands},
    error::RescuerError,
    halt::Interrupted,
    leadership::{ability::Broker, lease, server},
    mongo::Mongo,
    observe::{event::RescueEvent, reporter::Reporter, status::Status, warning::Warning},
    process::Process,
    serve::Stream,
    settings::Settings,
    sweep::budget::Budget,
    watch_plan::{self, Plan},
};

/// A rescuer, ready to run.
///
/// A rescuer takes its connections and a stop token as parameters, so that it runs the same way in its own
/// process, inside an application, and in a test. Give the rescuer its own MongoDB client: each of its
/// change streams keeps one connection busy.
pub struct Rescuer {
    process: Process,
    events: Events<RescueEvent>,
    streams: Vec<(Plan, Arc<Reporter>)>,
}

impl fmt::Debug for Rescuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rescuer").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Rescuer {
    /// Prepares a rescuer without connecting.
    ///
    /// # Errors
    /// Returns [`RescuerError::Settings`], with every problem of the settings.
    pub fn new(
        client: Client,
        commands: Arc<dyn Commands>,
        settings: Settings,
    ) -> Result<Self, RescuerError> {
        settings.validate().map_err(RescuerError::Settings)?;

        let events = Events::default();
        let mut streams = Vec::new();
        for plan in watch_plan::plans(&settings) {
            let report = Reporter::new(&plan, settings.sweep_interval, events.clone());
            streams.push((plan, Arc::new(report)));
        }
        let process = Process {
            name: lease::owner().into(),
            mongo: Mongo::new(client),
            broker: Arc::new(Broker::new(commands)),
            budget: Arc::new(Budget::new(settings.sweep_queries_per_second)),
            settings: Arc::new(settings),
        };
        Ok(Self { process, events, streams })
    }

    /// Prepares a rescuer that runs in the process of an application. It sends commands to the broker of
    /// `amqp`, with the default names of exchange and queue.
    ///
    /// # Errors
    /// Returns [`RescuerError::Settings`], with every problem of the settings.
    ///
    /// # Panics
    /// Panics if it is called outside a Tokio runtime.
    pub fn embedded(client: &Client, amqp: AmqpSettings, settings: Settings) -> Result<Self, RescuerError> {
        Self::new(client.clone(), Arc::new(BrokerCommands::start(amqp)), settings)
    }

    /// Subscribes to the events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<RescueEvent> {
        self.events.subscribe()
    }

    /// A handle with which a caller can read the rescuer's state now and while the rescuer runs.
    #[must_use]
    pub fn status(&self) -> Status {
        let streams = self.streams.iter().map(|(_, report)| report.clone());
        Status::new(self.process.name.clone(), streams.collect())
    }

    /// Rescues until `stop` is cancelled. Then the rescuer begins no new work, leaves unconfirmed pages to
    /// the next start, saves the positions of confirmed changes, releases its leases, and returns. This
    /// shutdown takes only seconds, even if no server answers.
    ///
    /// While it runs, the rescuer waits out outages of MongoDB and of the broker, and waits while another
    /// rescuer owns a stream. If one stream or collection fails, the failure is reported and retried while
    /// the others continue.
    ///
    /// # Errors
    /// Returns a [`RescuerError`] if the rescuer cannot start, or if no stream can continue.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RescuerError> {
        // This separate token lets a failed stream stop the other streams. If this future ends or is dropped,
        // all streams stop too.
        let stop = stop.child_token();
        let _all = stop.clone().drop_guard();
        match server::check(&self.process.mongo, &stop).await {
            Ok(()) => {}
            Err(Interrupted::Halted) => return Ok(()),
            Err(Interrupted::Failed(error)) => return Err(error),
        }
        self.warn_of_a_long_grace();

        let of = self.streams.len();
        let mut serving = Vec::with_capacity(of);
        for (plan, report) in self.streams {
            let stream = Stream::new(self.process.clone(), plan, report, of, stop.clone());
            let all = stop.clone().drop_guard();
            serving.push(async move {
                let _all = all;
                stream.serve().await
            });
        }
        join_all(serving).await.into_iter().collect()
    }

    /// Starts the rescuer as a task of this process. Must be called inside a Tokio runtime.
    #[must_use]
    pub fn start(self) -> Running {
        let status = self.status();
        let stop = CancellationToken::new();
        let task = tokio::spawn(self.run(stop.clone()));
        Running { status, stop: stop.drop_guard(), task }
    }

    fn warn_of_a_long_grace(&self) {
        let Settings { shutdown_grace, ownership_lease: lease, .. } = *self.process.settings;
        let (Some(grace), Some((_, report))) = (shutdown_grace, self.streams.first()) else {
            return;
        };
        if grace > lease {
            report.warn(Warning::GraceLong { grace, lease });
        }
    }
}

/// A rescuer that runs as a task of this process. [`stop`](Self::stop) ends it; if this handle is dropped,
/// the rescuer stops by itself soon after.
#[derive(Debug)]
pub struct Running {
    status: Status,
    stop: DropGuard,
    task: JoinHandle<Result<(), RescuerError>>,
}

impl Running {
    /// Returns a handle with which a caller can read the rescuer's state.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Waits until the rescuer has ended. Without a stop, it ends only if no stream can continue. This method
    /// is cancel safe.
    ///
    /// # Errors
    /// Returns the [`RescuerError`] that ended the rescuer.
    pub async fn ended(&mut self) -> Result<(), RescuerError> {
        joined((&mut self.task).await)
    }

    /// Stops the rescuer in the same way as [`Rescuer::run`] stops, and waits until it has ended.
    ///
    /// # Errors
    /// Returns a [`RescuerError`] if the rescuer had already failed.
    pub async fn stop(self) -> Result<(), RescuerError> {
        drop(self.stop);
        joined(self.task.await)
    }
}

/// Returns the result of the rescuer's task. If the task panicked, resumes the panic in the caller. The task
/// is never aborted.
fn joined(ended: Result<Result<(), RescuerError>, JoinError>) -> Result<(), RescuerError> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(ended) => ended,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_aborted)) => Ok(()),
    }
}

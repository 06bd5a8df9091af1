//! One rescuer from its start to its end: for each of its streams, it is a standby until it owns the stream,
//! then runs the stream and the sweep concurrently.
//!
//! ```text
//!                  ┌───────── lease lost ◀───────────┐
//!                  ▼                                 │
//!   start ──▶ standing by ── lease taken ──▶ stream and sweep ── stopped ──▶ position saved, lease given back
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
/// It takes its connections and a token that stops it, so that it runs the same in its own process, inside an
/// application's, and in a test. Give it a client of its own: its change streams keep a connection each busy.
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
    /// Prepares a rescuer, without connecting.
    ///
    /// # Errors
    /// [`RescuerError::Settings`] with everything that cannot work.
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

    /// Prepares a rescuer in the process of an application. It sends commands to this broker, with the default names.
    ///
    /// # Errors
    /// [`RescuerError::Settings`] with everything that cannot work.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn embedded(client: &Client, amqp: AmqpSettings, settings: Settings) -> Result<Self, RescuerError> {
        Self::new(client.clone(), Arc::new(BrokerCommands::start(amqp)), settings)
    }

    /// The events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<RescueEvent> {
        self.events.subscribe()
    }

    /// Its state, now and while it runs.
    #[must_use]
    pub fn status(&self) -> Status {
        let streams = self.streams.iter().map(|(_, report)| report.clone());
        Status::new(self.process.name.clone(), streams.collect())
    }

    /// Rescues until `stop` is cancelled. Then it begins no new work, leaves an unconfirmed page for the next
    /// start, saves the positions of confirmed changes, releases its leases, and returns, within seconds even
    /// if no server answers.
    ///
    /// It waits until outages of MongoDB and of the broker end, and until another owner of a stream stops.
    /// Failures of one stream or one collection are reported and retried, while the others continue.
    ///
    /// # Errors
    /// [`RescuerError`], if it cannot start, or if no stream can continue.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RescuerError> {
        // A separate token, so that a stream that ends can end the others. Whatever ends this, even a drop,
        // no stream continues alone.
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

    /// Starts it as a task of this process. Must be called inside a tokio runtime.
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

/// A rescuer at work in this process. It ends by [`stop`](Self::stop); if this is dropped, it ends by itself soon after.
#[derive(Debug)]
pub struct Running {
    status: Status,
    stop: DropGuard,
    task: JoinHandle<Result<(), RescuerError>>,
}

impl Running {
    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Waits until it has ended, which it does before a stop only if no stream can continue. Cancel safe.
    ///
    /// # Errors
    /// [`RescuerError`]: why it ended.
    pub async fn ended(&mut self) -> Result<(), RescuerError> {
        joined((&mut self.task).await)
    }

    /// Stops it, as [`Rescuer::run`] stops, and waits until it has ended.
    ///
    /// # Errors
    /// [`RescuerError`], if it had ended before.
    pub async fn stop(self) -> Result<(), RescuerError> {
        drop(self.stop);
        joined(self.task.await)
    }
}

/// Continues a panic of the task in the caller. The task is never aborted.
fn joined(ended: Result<Result<(), RescuerError>, JoinError>) -> Result<(), RescuerError> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(ended) => ended,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_aborted)) => Ok(()),
    }
}

//! One rescuer from its start to its end: for each of its streams, standing by until it owns it, then the stream and the
//! sweep beside each other.
//!
//! ```text
//!                  ┌───────── lease lost ◀───────────┐
//!                  ▼                                 │
//!   start ──▶ standing by ── lease taken ──▶ stream and sweep ── stopped ──▶ position saved, lease given back
//! ```

use std::{fmt, sync::Arc, time::Duration};

use document_outbox::{internal::ServerClock, observe::Events};
use futures::future::join_all;
use mongodb::Client;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{
    Commands, RescueEvent, RescuerError, Settings, Warning,
    leadership::lease::{self, Lease},
    leadership::server,
    leadership::term::{Context, Shared, Stream},
    observe::status::{Reporter, StatusHandle},
    owner::SERVING,
    stream::position::Positions,
    sweep::budget::Budget,
    watch_plan::{self, Plan},
};

/// After a term that ended with an error, a stream is taken up again no sooner.
const AFTER_ERROR: Duration = Duration::from_secs(60);

/// A rescuer, ready to run.
///
/// It takes its connections and a token that stops it, so that it runs the same in its own process, inside an
/// application's, and in a test. Give it a client of its own: its change streams keep a connection each busy.
pub struct Rescuer {
    shared: Shared,
    events: Events<RescueEvent>,
    streams: Vec<(Plan, Arc<Reporter>)>,
}

impl fmt::Debug for Rescuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rescuer").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Rescuer {
    /// Prepares a rescuer; nothing is connected yet.
    ///
    /// # Errors
    /// [`RescuerError::Settings`] with everything that cannot work.
    pub fn new(
        client: Client,
        commands: Arc<dyn Commands>,
        settings: Settings,
    ) -> Result<Self, RescuerError> {
        let problems: Vec<String> = settings
            .problems()
            .into_iter()
            .map(|(names, sentence)| format!("{} {sentence}", names.join(" and ")))
            .collect();
        if !problems.is_empty() {
            return Err(RescuerError::Settings(problems));
        }
        let events = Events::default();
        let report = |plan: Plan| {
            let report = Reporter::new(&plan, settings.sweep_interval, events.clone());
            (plan, Arc::new(report))
        };
        let streams = watch_plan::plans(&settings).into_iter().map(report).collect();
        let shared = Shared {
            clock: ServerClock::new(client.clone()),
            client,
            commands,
            budget: Arc::new(Budget::new(settings.sweep_queries_per_second)),
            owner: lease::owner().into(),
            sending: Arc::default(),
            settings: Arc::new(settings),
        };
        Ok(Self { shared, events, streams })
    }

    /// What happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<RescueEvent> {
        self.events.subscribe()
    }

    /// How it stands, now and while it runs.
    pub fn status(&self) -> StatusHandle {
        let streams = self.streams.iter().map(|(_, report)| report.clone());
        StatusHandle::new(self.shared.owner.clone(), streams.collect())
    }

    /// Rescues until `stop` is cancelled. Then it takes nothing new, leaves a page that isn't confirmed for the next start,
    /// saves the positions behind what is, gives its leases back, and returns, within seconds even if no server answers.
    ///
    /// Outages of MongoDB and of the broker are waited out. So is another rescuer that owns a stream. Trouble of one stream or
    /// one collection is reported and tried again, while the others go on.
    ///
    /// # Errors
    /// [`RescuerError`], for what keeps it from starting, and for what no stream can go on after.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RescuerError> {
        // Of its own, so that a stream that ends can end the others. However this ends, even if it is dropped, nothing goes on
        // alone.
        let stop = stop.child_token();
        let _all = stop.clone().drop_guard();
        if !server::check(&self.shared.client, &stop).await? {
            return Ok(());
        }
        let settings = &self.shared.settings;
        if let Some(grace) = settings.shutdown_grace.filter(|grace| *grace > settings.lease) {
            let warning = Warning::GraceLong { grace, lease: settings.lease };
            self.streams.iter().take(1).for_each(|(_, report)| report.warn(warning.clone()));
        }
        let remembers = settings.queued_capacity / self.streams.len();
        let alone = self.streams.len() == 1;
        let serve = |(plan, report): (Plan, Arc<Reporter>)| {
            let (shared, stop) = (self.shared.clone(), stop.clone());
            async move {
                let _all = stop.clone().drop_guard();
                Stream::new(shared, plan, report, remembers, alone, stop).serve().await
            }
        };
        join_all(self.streams.into_iter().map(serve)).await.into_iter().collect()
    }
}

impl Stream {
    fn new(
        shared: Shared,
        plan: Plan,
        report: Arc<Reporter>,
        remembers: usize,
        alone: bool,
        stop: CancellationToken,
    ) -> Self {
        let Shared { client, settings, owner, .. } = &shared;
        let lease = Lease::new(client, &settings.state_database, &plan.name, owner, settings.lease);
        let positions = Positions::new(client, &plan, owner);
        Self { positions, lease, shared, plan, report, remembers, alone, stop }
    }

    async fn serve(self) -> Result<(), RescuerError> {
        // Where to begin, once, if an operator wants it elsewhere than at the position.
        let mut start_at = self.shared.settings.start_at;
        while let Some(held) = self.stand_by().await {
            let epoch = held.epoch;
            tracing::info!(stream = self.plan.name, epoch, owner = %self.shared.owner, "owner of the stream");
            self.report.owned(&self.shared.owner, epoch, held.until());
            let stream = self.plan.name.clone();
            self.report.emit(RescueEvent::Owned { stream, epoch });
            let context = Arc::new(Context::new(&self, held, start_at.take()));
            let ended = self.own(&context).await;
            self.give_back(&context).await;
            match ended {
                Ok(()) => {}
                Err(error) if self.alone || error.is_defect() => return Err(error),
                // The others go on.
                Err(error) => {
                    self.report.trouble(SERVING, &error.with_source());
                    self.stop.run_until_cancelled(tokio::time::sleep(AFTER_ERROR)).await;
                }
            }
        }
        Ok(())
    }
}

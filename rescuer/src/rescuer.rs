//! One rescuer from its start to its end: for each of its streams, standing by until it owns it, then the stream and the
//! sweep beside each other.
//!
//! ```text
//!                  ┌───────── lease lost ◀───────────┐
//!                  ▼                                 │
//!   start ──▶ standing by ── lease taken ──▶ stream and sweep ── told to stop ──▶ position saved, lease given back
//! ```
//!
//! # Where a stream begins
//! ```text
//!  saved position   is            start reading         full sweep
//!  ──────────────   ───────────   ───────────────────   ──────────
//!  none             first start   now, saved first      yes, twice
//!  of this filter   resumed       behind it             yes
//!  of another       changed       at its time           yes, twice
//!  any, `start_at`  asked         at that time          yes, twice
//!  unusable, lost   lost          sweep: now            yes, twice, after the new position is saved
//!                                 latest: now           no
//!                                 fail: not at all      no
//! ```
//! The new position is always saved before the sweep begins: whatever is saved later shows in the stream, whatever was
//! saved earlier is there for the sweep. What was saved shortly before is too young for the first, and without a date no
//! other would find it soon: so there is a second one, a delay later.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::{clock::ServerClock, event::Events};
use futures::{FutureExt, future::join_all};
use mongodb::Client;
use tokio::{sync::broadcast, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Commands, RescueEvent, RescuerError, Settings, Warning,
    budget::Budget,
    commands::Pauses,
    context::{Context, FullSweep, Shared, Stream},
    coverage::{self, Plan},
    event::StartedFrom,
    fault::{self, Fault},
    follow::{Followed, follow},
    lease::{self, Held, Lease, Others},
    oplog,
    position::{Mark, Positions, Saved, Start},
    server,
    settings::OnHistoryLost,
    status::{Reporter, StatusHandle},
    sweep::Sweep,
    totals,
};

/// A rescuer, ready to run.
///
/// It takes its connections and a token that stops it, so that it runs the same in its own process, inside an
/// application's, and in a test. Give it a client of its own: its change streams keep a connection each busy.
pub struct Rescuer {
    shared: Shared,
    events: Events<RescueEvent>,
    streams: Vec<(Plan, Arc<Reporter>)>,
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
            let report = Reporter::new(&plan, events.clone());
            (plan, Arc::new(report))
        };
        let streams = coverage::plans(&settings).into_iter().map(report).collect();
        let shared = Shared {
            clock: ServerClock::new(client.clone()),
            client,
            commands,
            budget: Arc::new(Budget::new(settings.sweep_queries_per_second)),
            owner: lease::owner().into(),
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
    /// saves the positions behind what is, gives its leases back, and returns.
    ///
    /// Outages of MongoDB and of the broker are waited out. So is another rescuer that owns a stream.
    ///
    /// # Errors
    /// [`RescuerError`], for what does not pass by itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RescuerError> {
        // Of its own, so that each stream can end the others. However this ends, be it that it is dropped, nothing goes on
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
        let serve = |(plan, report): (Plan, Arc<Reporter>)| {
            let (shared, stop) = (self.shared.clone(), stop.clone());
            async move {
                let _all = stop.clone().drop_guard();
                Stream::new(shared, plan, report, remembers, stop).serve().await
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
        stop: CancellationToken,
    ) -> Self {
        let Shared { client, settings, owner, .. } = &shared;
        let lease = Lease::new(client, &settings.state_database, &plan.name, owner, settings.lease);
        let positions = Positions::new(client, &plan, owner);
        Self { positions, lease, shared, plan, report, remembers, stop }
    }

    async fn serve(self) -> Result<(), RescuerError> {
        // Where to begin, once, if an operator wants it elsewhere than at the position.
        let mut start_at = self.shared.settings.start_at;
        while let Some(held) = self.stand_by().await? {
            let epoch = held.epoch;
            tracing::info!(stream = self.plan.name, epoch, owner = %self.shared.owner, "owner of the stream");
            self.report.owned(&self.shared.owner, epoch, held.until());
            let stream = self.plan.name.clone();
            self.report.emit(RescueEvent::Owned { stream, epoch });
            let context = Arc::new(Context::new(&self, held, start_at.take()));
            let ended = self.own(&context).await;
            self.give_back(&context).await;
            ended?;
        }
        Ok(())
    }

    /// Waits until the lease can be taken, and takes it; `None` when told to stop before.
    async fn stand_by(&self) -> Result<Option<Held>, RescuerError> {
        let mut pauses = Pauses::new();
        let mut seen = None;
        while !self.stop.is_cancelled() {
            match self.look_or_take().await {
                Ok(Ok(held)) => return Ok(Some(held)),
                Ok(Err(others)) => {
                    pauses = Pauses::new();
                    let ends = Instant::now() + others.left;
                    self.report.standing_by(Some((&others.owner, others.epoch, ends)));
                    if seen.replace((others.owner.clone(), others.epoch)) != seen {
                        let (stream, owner) = (self.plan.name.clone(), others.owner.clone());
                        tracing::info!(stream, owner, epoch = others.epoch, "standing by");
                        self.report.emit(RescueEvent::StandingBy { stream, owner });
                    }
                    // Often, so that one that is given back is noticed at once.
                    let step =
                        (self.lease.lasts() / LOOKS).clamp(SHORTEST_LOOK, LONGEST_LOOK).min(others.left);
                    self.stop.run_until_cancelled(tokio::time::sleep(step)).await;
                }
                Err(source) => {
                    let doing = "take the stream's lease";
                    if let Fault::Fatal(advice) = fault::of(&source) {
                        return Err(RescuerError::Refused { doing, advice, source });
                    }
                    tracing::warn!(error = fault::text(&source), "could not {doing}; trying again");
                    self.report.error(&format!("could not {doing}: {}", fault::text(&source)));
                    pauses.pause(&self.stop).await;
                }
            }
        }
        Ok(None)
    }

    async fn look_or_take(&self) -> Result<Result<Held, Others>, mongodb::error::Error> {
        loop {
            if let Some(others) = self.lease.look().await? {
                return Ok(Err(others));
            }
            // Above the position's too, whatever became of the lease, or the position could not be written.
            let floor = self.positions.epoch().await?;
            if let Some(held) = self.lease.take(floor).await? {
                return Ok(Ok(held));
            }
        }
    }

    /// Does the owner's work until told to stop or the lease is lost, and keeps the lease until the last of it is done.
    async fn own(&self, context: &Arc<Context>) -> Result<(), RescuerError> {
        let _both = context.stop.clone().drop_guard();
        let done = CancellationToken::new();
        let _done = done.clone().drop_guard();
        tokio::spawn(keep(self.lease.clone(), context.clone(), done));
        let beside =
            [tokio::spawn(oplog::watch(context.clone())), tokio::spawn(totals::refresh(context.clone()))];
        let ended = run(context).await;
        context.stop.cancel();
        // Whatever became of them, they are over before another term of this process begins.
        join_all(beside).await;
        self.report.standing_by(None);
        context.set_collections(HashMap::new());
        ended
    }

    /// Lets another go on at once. Where that fails, it does when the lease is over.
    async fn give_back(&self, context: &Context) {
        let release = timeout(self.lease.lasts(), self.lease.release(context.held.epoch));
        if let Ok(Err(error)) = release.await {
            tracing::debug!(
                error = fault::text(&error),
                "the lease could not be given back; it ends by itself"
            );
        }
    }
}

/// Renews the lease until all is done, and has the owner step back where that is not possible.
async fn keep(lease: Lease, context: Arc<Context>, done: CancellationToken) {
    let pause = lease.lasts() / 3;
    loop {
        let step = pause.min(context.held.until().saturating_duration_since(Instant::now()));
        if done.run_until_cancelled(tokio::time::sleep(step)).await.is_none() {
            return;
        }
        if !context.held.lasts() {
            // Steps back, unless it did so already.
            context.is_over();
            return;
        }
        let asked = Instant::now();
        let left = context.held.until().saturating_duration_since(asked);
        match timeout(left, lease.renew(context.held.epoch)).await {
            Ok(Ok(true)) => {
                let until = asked + lease.lasts();
                context.held.extend(until);
                context.report.renewed(until);
            }
            Ok(Ok(false)) => {
                return context.step_back("another rescuer has taken its lease, or somebody deleted it");
            }
            Ok(Err(error)) => {
                tracing::warn!(error = fault::text(&error), "could not renew the lease; trying again");
                context.report.error(&format!("could not renew the lease: {}", fault::text(&error)));
            }
            // Out of time: found in the next turn.
            Err(_) => {}
        }
    }
}

/// How often those who stand by look while a lease lasts.
const LOOKS: u32 = 15;
const SHORTEST_LOOK: Duration = Duration::from_millis(50);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

async fn run(context: &Arc<Context>) -> Result<(), RescuerError> {
    let start = match context.start_at {
        Some(time) => Start::Asked(time),
        None => match context.insist("read the position", || context.positions.load()).await? {
            Some(start) => start,
            None => return Ok(()),
        },
    };
    let Some((mark, from)) = take_up(context, start).await? else {
        return Ok(());
    };
    context.full_sweep.postpone();
    if matches!(from, StartedFrom::Now | StartedFrom::ChangedPatterns | StartedFrom::Asked) {
        FullSweep::request_later(context);
    }
    let sweeping = tokio::spawn({
        let context = context.clone();
        async move {
            let _both = context.stop.clone().drop_guard();
            Sweep::new(&context).run().await
        }
    });
    let following = AssertUnwindSafe(keep_following(context, mark, from)).catch_unwind();
    let followed = following.await.unwrap_or(Err(RescuerError::Panicked("what follows the change stream")));
    context.stop.cancel();
    let swept = match sweeping.await {
        Ok(swept) => swept,
        Err(error) if error.is_panic() => Err(RescuerError::Panicked("the sweep")),
        Err(_) => Ok(()),
    };
    followed.and(swept)
}

/// Makes a start of what was found, and saves it where it is new; `None` when told to stop before.
async fn take_up(context: &Arc<Context>, start: Start) -> Result<Option<(Mark, StartedFrom)>, RescuerError> {
    let (mark, from) = match start {
        Start::Resume(mark) => (mark, StartedFrom::Position),
        Start::PipelineChanged(time) => {
            tracing::info!(
                "other collections are watched than before: reading again from the position's time, and sweeping"
            );
            (Mark::at(time), StartedFrom::ChangedPatterns)
        }
        Start::Asked(time) => {
            let seconds = time.time;
            tracing::warn!(
                seconds,
                "reading from the time in start_at, whatever the position says; remove start_at again"
            );
            (Mark::at(time), StartedFrom::Asked)
        }
        Start::Fresh => match now(context).await? {
            Some(mark) => (mark, StartedFrom::Now),
            None => return Ok(None),
        },
        Start::Lost(reason) => return lose(context, reason, None).await,
    };
    Ok(save(context, &mark).await?.then_some((mark, from)))
}

/// Follows, and starts over as the settings say when the position is lost.
async fn keep_following(
    context: &Arc<Context>,
    mut mark: Mark,
    mut from: StartedFrom,
) -> Result<(), RescuerError> {
    let mut pauses = Pauses::new();
    loop {
        match follow(context, mark, from).await? {
            Followed::Stopped => return Ok(()),
            Followed::Lost { reason, code, worked } => {
                // One after the other without anything between, the more slowly the longer.
                if worked {
                    pauses = Pauses::new();
                }
                pauses.pause(&context.stop).await;
                match lose(context, reason, code).await? {
                    Some(start) => (mark, from) = start,
                    None => return Ok(()),
                }
            }
        }
    }
}

/// What to do without a position.
async fn lose(
    context: &Arc<Context>,
    reason: String,
    code: Option<i32>,
) -> Result<Option<(Mark, StartedFrom)>, RescuerError> {
    let settings = &context.settings;
    tracing::warn!(reason, code, policy = ?settings.on_history_lost, "the stream's position is LOST");
    context.report.emit(RescueEvent::PositionLost { reason: reason.clone(), code });
    if settings.on_history_lost == OnHistoryLost::Fail {
        let stream = context.plan.name.clone();
        return Err(RescuerError::PositionLost { stream, reason });
    }
    let Some(mark) = now(context).await? else {
        return Ok(None);
    };
    if !save(context, &mark).await? {
        return Ok(None);
    }
    if settings.on_history_lost == OnHistoryLost::Sweep {
        FullSweep::request_twice(context);
    }
    Ok(Some((mark, StartedFrom::AfterLoss)))
}

async fn now(context: &Context) -> Result<Option<Mark>, RescuerError> {
    let ask = || server::operation_time(&context.client);
    let time = context.insist("ask MongoDB for its operation time", ask).await?;
    Ok(time.map(Mark::at))
}

/// False when told to stop before.
async fn save(context: &Context, mark: &Mark) -> Result<bool, RescuerError> {
    let Some(now) = context.now().await? else {
        return Ok(false);
    };
    let save = || context.positions.take(mark, context.held.epoch, now);
    match context.insist("save the position", save).await? {
        Some(Saved::Done) => {
            context.report.position(mark.cluster_time);
            Ok(true)
        }
        Some(Saved::Fenced) => {
            context.step_back("another rescuer has saved a position");
            Ok(false)
        }
        None => Ok(false),
    }
}

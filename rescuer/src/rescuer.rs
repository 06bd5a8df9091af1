//! One rescuer from its start to its end: the stream and the sweep beside each other.
//!
//! ```text
//!  saved position   is            start reading         full sweep
//!  ──────────────   ───────────   ───────────────────   ──────────
//!  none             first start   now, saved first      yes
//!  of this filter   resumed       behind it             yes
//!  of another       changed       at its time           yes
//!  unusable, lost   lost          sweep: now            yes, after the new position is saved
//!                                 latest: now           no
//!                                 fail: not at all      no
//! ```
//! The new position is always saved before the sweep begins: whatever is saved later shows in the stream, whatever was
//! saved earlier is there for the sweep.

use std::sync::{Arc, Mutex};

use document_outbox::{clock::ServerClock, event::Events};
use mongodb::Client;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{
    Commands, RescueEvent, RescuerError, Settings,
    context::{Context, FullSweep},
    event::StartedFrom,
    follow::{Followed, follow},
    position::{Mark, Positions, Start},
    queued::Queued,
    server,
    settings::OnHistoryLost,
    sweep::Sweep,
};

/// A rescuer, ready to run.
///
/// It takes its connections and a token that stops it, so that it runs the same in its own process, inside an
/// application's, and in a test. Give it a client of its own: its change stream keeps a connection busy.
pub struct Rescuer {
    client: Client,
    commands: Arc<dyn Commands>,
    settings: Settings,
    events: Events<RescueEvent>,
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
        match problems.is_empty() {
            true => Ok(Self { client, commands, settings, events: Events::default() }),
            false => Err(RescuerError::Settings(problems)),
        }
    }

    /// What happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<RescueEvent> {
        self.events.subscribe()
    }

    /// Rescues until `stop` is cancelled. Then it takes nothing new, leaves a page that isn't confirmed for the next start,
    /// saves the position behind what is, and returns.
    ///
    /// Outages of MongoDB and of the broker are waited out.
    ///
    /// # Errors
    /// [`RescuerError`], for what does not pass by itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RescuerError> {
        let queued = Queued::new(self.settings.queued_capacity, self.settings.requeue_pause);
        let context = Arc::new(Context {
            clock: ServerClock::new(self.client.clone()),
            positions: Positions::new(&self.client, &self.settings),
            client: self.client,
            commands: self.commands,
            events: self.events,
            full_sweep: FullSweep::default(),
            queued: Mutex::new(queued),
            // Of its own, so that either half can end the other.
            stop: stop.child_token(),
            settings: self.settings,
        });
        let result = run(&context).await;
        context.stop.cancel();
        result
    }
}

async fn run(context: &Arc<Context>) -> Result<(), RescuerError> {
    if !server::check(context).await? {
        return Ok(());
    }
    let Some(start) = context.insist("read the position", || context.positions.load()).await? else {
        return Ok(());
    };
    let Some((mark, from)) = take_up(context, start).await? else {
        return Ok(());
    };
    context.full_sweep.postpone();
    let sweeping = tokio::spawn({
        let context = context.clone();
        async move {
            let swept = Sweep::new(&context).run().await;
            context.stop.cancel();
            swept
        }
    });
    let followed = keep_following(context, mark, from).await;
    context.stop.cancel();
    let swept = match sweeping.await {
        Ok(swept) => swept,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(()),
    };
    followed.and(swept)
}

/// Makes a start of what was found, and saves it where it is new; `None` when told to stop before.
async fn take_up(context: &Context, start: Start) -> Result<Option<(Mark, StartedFrom)>, RescuerError> {
    let (mark, from) = match start {
        Start::Resume(mark) => (mark, StartedFrom::Position),
        Start::PipelineChanged(time) => {
            tracing::info!(
                "other collections are watched than before: reading again from the position's time, and sweeping"
            );
            (Mark::at(time), StartedFrom::ChangedPatterns)
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
    loop {
        match follow(context, mark, from).await? {
            Followed::Stopped => return Ok(()),
            Followed::Lost { reason, code } => match lose(context, reason, code).await? {
                Some(start) => (mark, from) = start,
                None => return Ok(()),
            },
        }
    }
}

/// What to do without a position.
async fn lose(
    context: &Context,
    reason: String,
    code: Option<i32>,
) -> Result<Option<(Mark, StartedFrom)>, RescuerError> {
    let settings = &context.settings;
    tracing::warn!(reason, code, policy = ?settings.on_history_lost, "the stream's position is LOST");
    context.events.emit(RescueEvent::PositionLost { reason: reason.clone(), code });
    if settings.on_history_lost == OnHistoryLost::Fail {
        let stream = settings.stream.clone();
        return Err(RescuerError::PositionLost { stream, reason });
    }
    let Some(mark) = now(context).await? else {
        return Ok(None);
    };
    if !save(context, &mark).await? {
        return Ok(None);
    }
    if settings.on_history_lost == OnHistoryLost::Sweep {
        context.full_sweep.request();
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
    let save = || context.positions.take(mark, now);
    Ok(context.insist("save the position", save).await?.is_some())
}

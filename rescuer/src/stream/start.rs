//! Where a stream begins, and what happens when its position is lost.
//!
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

use std::sync::Arc;

use crate::{
    RescueEvent, RescuerError,
    leadership::server,
    leadership::term::{Context, FullSweep},
    observe::event::StartedFrom,
    send::commands::Pauses,
    settings::OnHistoryLost,
    stream::follow::{Followed, follow},
    stream::position::{Mark, Saved, Start},
};

/// Where this term of an owner begins to read; `None` when stopped before that was saved.
pub(crate) async fn begin(context: &Arc<Context>) -> Result<Option<(Mark, StartedFrom)>, RescuerError> {
    let start = match context.start_at {
        Some(time) => Start::Asked(time),
        None => match context.insist("read the position", || context.positions.load()).await {
            Some(start) => start,
            None => return Ok(None),
        },
    };
    take_up(context, start).await
}

/// Makes a start of what was found, and saves it where it is new; `None` when stopped before.
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
        Start::Fresh => match now(context).await {
            Some(mark) => (mark, StartedFrom::Now),
            None => return Ok(None),
        },
        Start::Lost(reason) => return lose(context, reason, None).await,
    };
    Ok(save(context, &mark).await.then_some((mark, from)))
}

/// Follows, and starts over as the settings say when the position is lost.
pub(crate) async fn keep_following(
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
    context.catalogue().doubt();
    if settings.on_history_lost == OnHistoryLost::Fail {
        let stream = context.plan.name.clone();
        return Err(RescuerError::PositionLost { stream, reason });
    }
    let Some(mark) = now(context).await else {
        return Ok(None);
    };
    if !save(context, &mark).await {
        return Ok(None);
    }
    if settings.on_history_lost == OnHistoryLost::Sweep {
        FullSweep::request_twice(context);
    }
    Ok(Some((mark, StartedFrom::AfterLoss)))
}

async fn now(context: &Context) -> Option<Mark> {
    let ask = || server::operation_time(&context.client);
    context.insist("ask MongoDB for its operation time", ask).await.map(Mark::at)
}

/// False when stopped before.
async fn save(context: &Context, mark: &Mark) -> bool {
    let Some(now) = context.now().await else {
        return false;
    };
    let save = || context.positions.take(mark, context.held.epoch, now);
    match context.insist("save the position", save).await {
        Some(Saved::Done) => {
            context.report.position(mark.cluster_time);
            true
        }
        Some(Saved::Fenced) => {
            context.step_back("another rescuer has saved a position");
            false
        }
        None => false,
    }
}

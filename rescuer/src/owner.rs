//! One term of an owner: from when a stream's lease is taken until it is lost, given up or given back.
//!
//! Stream and sweep run beside each other, and beside them three tasks without which nothing may go on: one renews the lease, one
//! watches the oplog, one counts the backlog. Each ends with the term; if one of them panics, the term ends, and the rescuer
//! with it.
//!
//! # When commands can't be sent
//! The owner goes on reading, counting and renewing: everything that needs no broker stays visible. But it gives the stream up to
//! one that stands by and can send commands, at once, though not before it has had it for one lease: with a broker that comes and
//! goes for all of them, the stream changes hands that often at most.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use tokio::{
    task::JoinHandle,
    time::{timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    RescuerError, classify,
    leadership::lease::Lease,
    leadership::standby::{Watch, pause_between_looks},
    leadership::term::{Context, FullSweep, Stream, with_grace},
    observe::event::StartedFrom,
    stream::oplog,
    stream::start::{begin, keep_following},
    sweep::backlog_gauge,
    sweep::catalogue::Flaws,
    sweep::rounds::Sweep,
};

/// For how long a task that was stopped may take to end by itself.
const LAST_STEPS: Duration = Duration::from_millis(500);
pub(crate) const SERVING: &str = "serve the stream";
const RENEWING: &str = "renew the lease";

impl Stream {
    /// Does the owner's work until stopped or the lease is lost, and keeps the lease until the last of it is done.
    pub(crate) async fn own(&self, context: &Arc<Context>) -> Result<(), RescuerError> {
        let _both = context.stop.clone().drop_guard();
        let done = CancellationToken::new();
        let _done = done.clone().drop_guard();
        let keeping = keep(self.lease.clone(), context.clone(), done);
        drop(essential(context, "the task that renews the lease", keeping));
        let beside = [
            essential(context, "the task that watches the oplog", oplog::watch(context.clone())),
            essential(context, "the task that counts the backlog", backlog_gauge::refresh(context.clone())),
        ];

        let ended = run(context).await;
        context.stop.cancel();
        // Whatever became of them, they are over before another term of this process begins.
        for task in beside {
            let _ = end_soon(task).await;
        }
        self.report.standing_by(None);
        self.report.flaws(Flaws::default());
        match context.panicked.get() {
            Some(what) => Err(RescuerError::Panicked(what)),
            None => ended,
        }
    }

    /// Lets another go on at once. Where that fails, it does when the lease is over.
    pub(crate) async fn give_back(&self, context: &Context) {
        let release = timeout(self.lease.lasts(), self.lease.release(context.held.epoch));
        let last = self.shared.settings.last_write();
        if let Some(Ok(Err(error))) = with_grace(&self.stop, last, release).await {
            tracing::debug!(
                error = classify::text(&error),
                "the lease could not be given back; it ends by itself"
            );
        }
    }
}

/// Runs a task without which the others may not go on.
fn essential(
    context: &Arc<Context>,
    what: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let context = context.clone();
    tokio::spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            let _ = context.panicked.set(what);
            context.stop.cancel();
        }
    })
}

/// Waits until a task that was stopped has ended, and ends it where that takes long; `None` then.
async fn end_soon<T>(mut task: JoinHandle<T>) -> Option<Result<T, tokio::task::JoinError>> {
    let deadline = tokio::time::Instant::now() + LAST_STEPS;
    if let Ok(ended) = timeout_at(deadline, &mut task).await {
        return Some(ended);
    }
    task.abort();
    let _ = task.await;
    None
}

/// Stream and sweep, beside each other.
async fn run(context: &Arc<Context>) -> Result<(), RescuerError> {
    let Some((mark, from)) = begin(context).await? else {
        return Ok(());
    };
    context.report.healed(SERVING);
    context.full_sweep.postpone();
    if matches!(from, StartedFrom::Now | StartedFrom::ChangedPatterns | StartedFrom::Asked) {
        FullSweep::request_later(context);
    }

    let sweeping = tokio::spawn({
        let context = context.clone();
        async move {
            let _both = context.stop.clone().drop_guard();
            Sweep::new(&context).run().await;
        }
    });
    let following = AssertUnwindSafe(keep_following(context, mark, from)).catch_unwind();
    let followed =
        following.await.unwrap_or(Err(RescuerError::Panicked("the task that follows the change stream")));
    context.stop.cancel();
    let swept = match end_soon(sweeping).await {
        Some(Err(error)) if error.is_panic() => Err(RescuerError::Panicked("the sweep")),
        // Nothing is kept of a round.
        Some(_) | None => Ok(()),
    };
    followed.and(swept)
}

/// Renews the lease until all is done. Has the owner step back where that is not possible, or another is able and this one isn't.
async fn keep(lease: Lease, context: Arc<Context>, done: CancellationToken) {
    let pause = lease.lasts() / 3;
    let mut renew_at = Instant::now() + pause;
    let mut watch = Watch::default();
    loop {
        let next = renew_at.min(context.held.until());
        let step = next.saturating_duration_since(Instant::now()).min(pause_between_looks(lease.lasts()));
        if done.run_until_cancelled(tokio::time::sleep(step)).await.is_none() {
            return;
        }
        if !context.held.lasts() {
            // Steps back, unless it did so already.
            context.is_over();
            return;
        }

        let is_able = context.is_able();
        context.report.able(is_able);
        let may_yield = !is_able && context.held.age() >= lease.lasts();
        if may_yield && let Some(able) = able_standby(&lease, &context, &mut watch).await {
            return context.step_back(&format!("it can't send commands, and {able}, which can, stands by"));
        }

        if Instant::now() >= renew_at {
            renew_at = Instant::now() + pause;
            if !renew(&lease, &context).await {
                return context.step_back("another rescuer has taken its lease, or somebody deleted it");
            }
        }
    }
}

/// One that stands by and can send commands.
async fn able_standby(lease: &Lease, context: &Context, watch: &mut Watch) -> Option<String> {
    let left = context.held.until().saturating_duration_since(Instant::now());
    let seen = timeout(left, lease.look()).await.ok()?.ok()??;
    let able = watch.able_other(&seen, &context.owner, lease.lasts(), Instant::now())?;
    Some(able.owner.clone())
}

/// False where it is no longer this process's.
async fn renew(lease: &Lease, context: &Context) -> bool {
    let asked = Instant::now();
    let left = context.held.until().saturating_duration_since(asked);
    match timeout(left, lease.renew(context.held.epoch)).await {
        Ok(Ok(true)) => {
            let until = asked + lease.lasts();
            context.held.extend(until);
            context.report.renewed(until);
            context.report.healed(RENEWING);
        }
        Ok(Ok(false)) => return false,
        Ok(Err(error)) => context.report.trouble(RENEWING, &classify::explain(&error, classify::of(&error))),
        // Out of time: found in the next turn.
        Err(_) => {}
    }
    true
}

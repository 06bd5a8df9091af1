//! The owner's work during one term.
//!
//! Stream and sweep run concurrently, together with three tasks that both need: one renews the lease, one
//! watches the oplog, one counts the backlog. Each ends with the term; if one of them panics, the term ends,
//! and the rescuer with it.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::FutureExt;
use mongodb::bson::Timestamp;
use tokio::{
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::RescuerError,
    halt::Interrupted,
    judge::inspect::Inspector,
    leadership::{lease::Lease, renewal::Renewal, term::Term},
    observe::flaws::Flaws,
    process::Process,
    send::{recently_queued::RecentlyQueued, sender::Sender},
    stream::{oplog, position::Positions, start::ChangeStream},
    sweep::{
        backlog_gauge::BacklogGauge, catalogue::Catalogue, full_sweep::FullSweep, read::CollectionReader,
        rounds::Rounds,
    },
};

/// As it is reported when it fails: "could not …".
pub(crate) const SERVING: &str = "serve the stream";
/// How long a stopped task may take to end by itself.
const LAST_STEPS: Duration = Duration::from_millis(500);

/// Everything that works during one term.
pub(crate) struct Owner {
    term: Arc<Term>,
    renewal: Renewal,
    stream: ChangeStream,
    sweep: Rounds,
    gauge: BacklogGauge,
    full_sweep: Arc<FullSweep>,
    /// Which of the tasks has panicked.
    panicked: Arc<OnceLock<&'static str>>,
}

impl Owner {
    /// Puts the parts together. `remembers` is how many documents the sweep may remember; `start_at` is where to begin instead
    /// of at the position.
    pub(crate) fn new(
        process: &Process,
        term: Arc<Term>,
        lease: Lease,
        positions: Positions,
        remembers: usize,
        start_at: Option<Timestamp>,
    ) -> Self {
        let Process { broker, budget, .. } = process;
        // Judges and sends, for both stream and sweep.
        let queued = RecentlyQueued::new(remembers, term.settings.requeue_pause);
        let inspector = Arc::new(Inspector::new(term.clone()));
        let lineage = positions.lineage().clone();
        let sender = Arc::new(Sender::new(term.clone(), inspector.clone(), broker.clone(), lineage, queued));

        let catalogue = Arc::new(Catalogue::new(term.clone()));
        let full_sweep = Arc::new(FullSweep::new(term.clone()));

        // The sweep, whose first round the gauge waits for.
        let swept = CancellationToken::new();
        let reader =
            CollectionReader::new(term.clone(), sender.clone(), inspector.clone(), catalogue.clone());
        let sweep = Rounds::new(
            term.clone(),
            sender.clone(),
            catalogue.clone(),
            full_sweep.clone(),
            budget.clone(),
            reader,
            swept.clone(),
        );

        Self {
            renewal: Renewal::new(lease, term.clone(), broker.clone()),
            gauge: BacklogGauge::new(term.clone(), catalogue.clone(), budget.clone(), swept),
            stream: ChangeStream {
                term: term.clone(),
                positions,
                sender,
                inspector,
                catalogue,
                full_sweep: full_sweep.clone(),
                start_at,
            },
            sweep,
            full_sweep,
            term,
            panicked: Arc::default(),
        }
    }

    /// Works until stopped or the lease is lost, and keeps the lease until the last of the work is done.
    pub(crate) async fn work(self) -> Result<(), RescuerError> {
        let Self { term, renewal, stream, sweep, gauge, full_sweep, panicked } = self;
        // Whatever ends this, even a drop, no task continues alone.
        let _all = term.stop.clone().drop_guard();
        let done = CancellationToken::new();
        let _done = done.clone().drop_guard();

        let essential = Essential { term: term.clone(), panicked: panicked.clone() };
        drop(essential.spawn("the task that renews the lease", renewal.keep(done)));
        let beside = [
            essential.spawn("the task that watches the oplog", oplog::watch(term.clone())),
            essential.spawn("the task that counts the backlog", gauge.run()),
        ];

        let ended = run(&term, stream, sweep, &full_sweep).await;
        term.stop.cancel();
        // They are over before another term of this process begins, whatever ended them.
        for task in beside {
            let _ = end_soon(task).await;
        }

        term.report.standing_by(None);
        term.report.flaws(Flaws::default());
        match panicked.get() {
            Some(what) => Err(RescuerError::Panicked(what)),
            None => ended,
        }
    }
}

/// Tasks that the others need to continue.
struct Essential {
    term: Arc<Term>,
    panicked: Arc<OnceLock<&'static str>>,
}

impl Essential {
    fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let (term, panicked) = (self.term.clone(), self.panicked.clone());
        tokio::spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                let _ = panicked.set(what);
                term.stop.cancel();
            }
        })
    }
}

/// Stream and sweep, concurrently.
async fn run(
    term: &Arc<Term>,
    stream: ChangeStream,
    sweep: Rounds,
    full_sweep: &Arc<FullSweep>,
) -> Result<(), RescuerError> {
    let begun = match stream.begin().await {
        Ok(begun) => begun,
        Err(Interrupted::Halted) => return Ok(()),
        Err(Interrupted::Failed(error)) => return Err(error),
    };
    term.report.healed(SERVING);

    // The sweep handles documents that were saved before the stream begins, the youngest of them only a delay
    // later.
    // The same applies to a saved position: it may be the new one of an owner that ended before that.
    full_sweep.postpone();
    full_sweep.request_later();

    let both = term.stop.clone().drop_guard();
    let sweeping = tokio::spawn(async move {
        let _both = both;
        // Only a stop ends it.
        let _ = sweep.run().await;
    });
    let followed = match AssertUnwindSafe(stream.keep_following(begun)).catch_unwind().await {
        Ok(Ok(()) | Err(Interrupted::Halted)) => Ok(()),
        Ok(Err(Interrupted::Failed(error))) => Err(error),
        Err(_) => Err(RescuerError::Panicked("the task that follows the change stream")),
    };
    term.stop.cancel();

    let swept = match end_soon(sweeping).await {
        Some(Err(error)) if error.is_panic() => Err(RescuerError::Panicked("the sweep")),
        // A round keeps no state.
        Some(_) | None => Ok(()),
    };
    followed.and(swept)
}

/// Waits until a task that was stopped has ended, and ends it if that takes long; `None` then.
async fn end_soon<T>(mut task: JoinHandle<T>) -> Option<Result<T, JoinError>> {
    if let Ok(ended) = timeout(LAST_STEPS, &mut task).await {
        return Some(ended);
    }
    task.abort();
    let _ = task.await;
    None
}

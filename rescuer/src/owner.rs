//! The owner's work during one term.
//!
//! The stream and the sweep run concurrently, together with three tasks that the stream and the
//! sweep both need: one renews the lease, one watches the oplog, and one counts the backlog. Each
//! task ends with the term. If a task panics, the term and the rescuer end.

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

/// Reports of a failure use this text as the end of the sentence "could not …".
pub(crate) const SERVING: &str = "serve the stream";
/// How long a task may take to end by itself after a stop.
const LAST_STEPS: Duration = Duration::from_millis(500);

/// Everything that runs during one leadership term.
pub(crate) struct Owner {
    term: Arc<Term>,
    renewal: Renewal,
    stream: ChangeStream,
    sweep: Rounds,
    gauge: BacklogGauge,
    full_sweep: Arc<FullSweep>,
    /// The name of the task that has panicked.
    panicked: Arc<OnceLock<&'static str>>,
}

impl Owner {
    /// Assembles the parts. `remembers` is the maximum number of documents that the sweep
    /// remembers. If `start_at` is set, the stream starts at that time instead of at the saved
    /// position.
    pub(crate) fn new(
        process: &Process,
        term: Arc<Term>,
        lease: Lease,
        positions: Positions,
        remembers: usize,
        start_at: Option<Timestamp>,
    ) -> Self {
        let Process { broker, budget, .. } = process;
        // The stream and the sweep share the parts that judge documents and send commands.
        let queued = RecentlyQueued::new(remembers, term.settings.requeue_pause);
        let inspector = Arc::new(Inspector::new(term.clone()));
        let lineage = positions.lineage().clone();
        let sender = Arc::new(Sender::new(term.clone(), inspector.clone(), broker.clone(), lineage, queued));

        let catalogue = Arc::new(Catalogue::new(term.clone()));
        let full_sweep = Arc::new(FullSweep::new(term.clone()));

        // Builds the sweep. The backlog gauge counts nothing until the sweep's first round has ended.
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

    /// Works until stopped or until the lease is lost. Keeps the lease until all work has finished.
    pub(crate) async fn work(self) -> Result<(), RescuerError> {
        let Self { term, renewal, stream, sweep, gauge, full_sweep, panicked } = self;
        // If this future ends or is dropped, the term's tasks stop too.
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
        // Waits for the tasks, so that they have ended before this process begins another term.
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

/// Tasks whose panic ends the term.
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

/// Runs the stream and the sweep concurrently.
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

    // The stream shows no document that was saved before its start, so a full sweep reads these
    // documents. The latest of them become old enough only one delay later, so a second full sweep
    // follows then.
    full_sweep.postpone();
    full_sweep.request_later();

    let both = term.stop.clone().drop_guard();
    let sweeping = tokio::spawn(async move {
        let _both = both;
        // The sweep ends only when stopped.
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
        // A round of the sweep keeps no state, so it can be aborted.
        Some(_) | None => Ok(()),
    };
    followed.and(swept)
}

/// Waits until a stopped task has ended. Aborts the task if that takes long, and then returns
/// `None`.
async fn end_soon<T>(mut task: JoinHandle<T>) -> Option<Result<T, JoinError>> {
    if let Ok(ended) = timeout(LAST_STEPS, &mut task).await {
        return Some(ended);
    }
    task.abort();
    let _ = task.await;
    None
}

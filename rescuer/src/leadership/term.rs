//! What stream and sweep share, while this process owns the stream.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use document_outbox::internal::ServerClock;
use mongodb::{
    Client, Collection, Namespace,
    bson::{DateTime, RawDocumentBuf, Timestamp, doc},
    error::Error,
    options::{
        Acknowledgment, CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
    },
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    Commands, RescueEvent, Settings, Warning, classify,
    judge::inspect::Unreadable,
    leadership::lease::{Held, Lease},
    observe::status::Reporter,
    send::ability::Sending,
    send::commands::Pauses,
    send::recently_queued::Queued,
    stream::position::Positions,
    sweep::budget::Budget,
    sweep::catalogue::Catalogue,
    watch_plan::Plan,
};

/// What all streams of a process share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) settings: Arc<Settings>,
    pub(crate) commands: Arc<dyn Commands>,
    pub(crate) clock: ServerClock,
    /// For the sweeps of all streams together.
    pub(crate) budget: Arc<Budget>,
    /// What this process is called.
    pub(crate) owner: Arc<str>,
    /// What became of the commands that were sent lately.
    pub(crate) sending: Arc<Sending>,
}

impl Shared {
    /// Whether this process can send commands, as far as it knows.
    pub(crate) fn is_able(&self) -> bool {
        self.commands.is_ready() && !self.sending.fails()
    }
}

/// One stream, whoever owns it.
pub(crate) struct Stream {
    pub(crate) shared: Shared,
    pub(crate) plan: Plan,
    pub(crate) report: Arc<Reporter>,
    pub(crate) positions: Positions,
    pub(crate) lease: Lease,
    /// How many documents its sweep may remember.
    pub(crate) remembers: usize,
    /// Whether this process has no other stream.
    pub(crate) alone: bool,
    pub(crate) stop: CancellationToken,
}

/// One stream, from when its lease is taken until it is lost or given back.
pub(crate) struct Context {
    pub(crate) shared: Shared,
    pub(crate) plan: Plan,
    pub(crate) held: Held,
    pub(crate) report: Arc<Reporter>,
    pub(crate) positions: Positions,
    /// Where to begin instead of at the position.
    pub(crate) start_at: Option<Timestamp>,
    pub(crate) full_sweep: FullSweep,
    pub(crate) queued: Mutex<Queued>,
    pub(crate) unreadable: Mutex<Unreadable>,
    pub(crate) inline: Mutex<InlineDispatcher>,
    catalogue: Mutex<Catalogue>,
    /// The sweep's first round has ended.
    pub(crate) swept: CancellationToken,
    /// Which of its tasks has panicked.
    pub(crate) panicked: OnceLock<&'static str>,
    pub(crate) stop: CancellationToken,
}

impl std::ops::Deref for Context {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Context {
    pub(crate) fn new(stream: &Stream, held: Held, start_at: Option<Timestamp>) -> Self {
        Self {
            queued: Mutex::new(Queued::new(stream.remembers, stream.shared.settings.requeue_pause)),
            shared: stream.shared.clone(),
            plan: stream.plan.clone(),
            held,
            report: stream.report.clone(),
            positions: stream.positions.clone(),
            start_at,
            full_sweep: FullSweep::default(),
            unreadable: Mutex::default(),
            inline: Mutex::default(),
            catalogue: Mutex::new(Catalogue::new(stream.plan.coverage.named())),
            swept: CancellationToken::new(),
            panicked: OnceLock::new(),
            stop: stream.stop.child_token(),
        }
    }

    pub(crate) fn queued(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn unreadable(&self) -> MutexGuard<'_, Unreadable> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing new may be begun: told to stop, or the lease is over. Asked before anything is queued or saved, since
    /// a process that was paused goes on where it was before any timer of its own has run.
    pub(crate) fn is_over(&self) -> bool {
        if !self.stop.is_cancelled() && !self.held.lasts() {
            self.step_back("its lease ended before it could be renewed, or this process was paused");
        }
        self.stop.is_cancelled()
    }

    /// Stops both halves of this stream, for another rescuer to go on, or this one later.
    pub(crate) fn step_back(&self, reason: &str) {
        if !self.stop.is_cancelled() {
            let (stream, epoch) = (self.plan.name.clone(), self.held.epoch);
            tracing::warn!(stream, epoch, reason, "no longer the owner of the stream; standing by");
            self.stop.cancel();
            self.report.emit(RescueEvent::SteppedBack { stream, epoch, reason: reason.into() });
        }
    }

    /// What is known of the collections.
    pub(crate) fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts how many of the documents that changed still have something to be delivered, and warns when it is some of
    /// them: where it is nearly all, there is no inline dispatcher that could be too slow.
    pub(crate) fn count_inline(&self, undelivered: usize, of: usize) {
        let mut inline = self.inline.lock().unwrap_or_else(PoisonError::into_inner);
        (inline.undelivered, inline.of) = (inline.undelivered + undelivered, inline.of + of);
        if inline.of >= ENOUGH {
            let InlineDispatcher { undelivered, of } = std::mem::take(&mut *inline);
            if undelivered * 20 > of && undelivered * 5 < of * 4 {
                self.report.warn(Warning::InlineSlow { undelivered, of, delay: self.plan.delay });
            }
        }
    }

    /// A collection to look documents up in: on the primary, which has everything that a change stream has shown.
    pub(crate) fn collection(&self, namespace: &Namespace) -> Collection<RawDocumentBuf> {
        let primary = CollectionOptions::builder().selection_criteria(primary()).build();
        self.client.database(&namespace.db).collection_with_options(&namespace.coll, primary)
    }

    /// The cluster time up to which the primary has everything; none where it tells none.
    pub(crate) async fn cluster_time(&self) -> Result<Option<Timestamp>, Error> {
        let admin = self.client.database("admin");
        let reply = admin.run_command(doc! { "ping": 1 }).selection_criteria(primary()).await?;
        Ok(reply.get_timestamp("operationTime").ok())
    }

    /// Server time; `None` when stopped before it could be asked.
    pub(crate) async fn now(&self) -> Option<DateTime> {
        self.insist("ask MongoDB for its time", || self.clock.now()).await
    }

    /// Does it until it succeeds, with pauses; `None` when stopped before. While it fails, that is shown as trouble of this
    /// stream: `doing` completes the sentence "could not …".
    pub(crate) async fn insist<T, F>(&self, doing: &str, mut attempt: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pauses = Pauses::new();
        let mut failed = false;
        while !self.is_over() {
            match self.stop.run_until_cancelled(attempt()).await? {
                Ok(done) => {
                    if failed {
                        self.report.healed(doing);
                    }
                    return Some(done);
                }
                Err(error) => {
                    failed = true;
                    self.report.trouble(doing, &classify::explain(&error, classify::of(&error)));
                    pauses.pause(&self.stop).await;
                }
            }
        }
        None
    }
}

/// How many changed documents were still undelivered, since this was last judged.
#[derive(Debug, Default)]
pub(crate) struct InlineDispatcher {
    undelivered: usize,
    of: usize,
}

/// So many documents make a share.
const ENOUGH: usize = 200;

/// For clocks that differ a little.
const MARGIN: Duration = Duration::from_secs(1);

/// The wish for a sweep that also finds what has no date.
#[derive(Debug, Default)]
pub(crate) struct FullSweep {
    wanted: AtomicBool,
    /// Collections whose part is wanted in the next round, whether or not a whole one is.
    owed: Mutex<HashSet<Namespace>>,
    wake: Notify,
}

impl FullSweep {
    /// Wants one now.
    pub(crate) fn request(&self) {
        self.postpone();
        self.wake.notify_one();
    }

    /// Wants one now, and another when what is too young for it is old enough.
    pub(crate) fn request_twice(context: &Arc<Context>) {
        context.full_sweep.request();
        Self::request_later(context);
    }

    /// Wants one when what is there now is as old as the delay.
    pub(crate) fn request_later(context: &Arc<Context>) {
        let context = context.clone();
        tokio::spawn(async move {
            let old = tokio::time::sleep(context.plan.delay + MARGIN);
            if context.stop.run_until_cancelled(old).await.is_some() {
                context.full_sweep.request();
            }
        });
    }

    /// Wants one in the next round.
    pub(crate) fn postpone(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Whether one is wanted; from then on it no longer is.
    pub(crate) fn take(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// The stream has passed over changes of this collection: its part of a full round has to find them.
    pub(crate) fn owe(&self, namespace: &Namespace) {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.clone());
    }

    /// The collections that are owed their part; from then on they no longer are.
    pub(crate) fn take_owed(&self) -> HashSet<Namespace> {
        std::mem::take(&mut *self.owed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a request.
    pub(crate) async fn requested(&self) {
        self.wake.notified().await;
    }
}

/// Gives what was begun its time to end: all that it needs before the stop, and `last` from then on. `None` when that wasn't enough.
pub(crate) async fn with_grace<T>(
    stop: &CancellationToken,
    last: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let over = async {
        stop.cancelled().await;
        tokio::time::sleep(last).await;
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = over => None,
    }
}

pub(crate) fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}

/// How the state database is read and written: what was read or written there lasts.
pub(crate) fn lasting() -> CollectionOptions {
    // A majority that is away for hours answers with an error, instead of never.
    let majority = WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(MAJORITY_WITHIN).build();
    CollectionOptions::builder()
        .read_concern(ReadConcern::majority())
        .write_concern(majority)
        .selection_criteria(primary())
        .build()
}

/// How long a write to the state database waits for the majority.
const MAJORITY_WITHIN: Duration = Duration::from_secs(10);

//! Opens the change stream, keeps it open, and passes its changes on in order.
//!
//! ```text
//!      ┌─────────── pause ◀── transient error ────┐
//!      ▼                                            │
//!   opening ──▶ reading ── held too long, invalidated, ended ──▶ opening, after the last token handed on
//!      │            │
//!      └────────────┴── position lost | stopped ──▶ the end
//! ```
//!
//! The reader runs in a separate task. A driver's cursor must not be used again after one of its polls was
//! dropped; so only the end of the term interrupts a poll, and the cursor is not used after that. The reader
//! reads at most one page ahead of the follower, then waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::internal::error_codes;
use mongodb::{
    bson::Document,
    change_stream::{ChangeStream, event::ResumeToken},
    error::Error,
    options::ChangeStreamOptions,
};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    change::{ChangeKind, Item, RawChange},
    filter::{Scope, pipeline},
    position::Mark,
    token,
};
use crate::{
    classify::{self, Fault},
    halt::{Halt, Run},
    leadership::term::Term,
    observe::{
        event::{ReopenCause, RescueEvent, StartedFrom},
        reminder::Reminder,
        standing::Reading,
    },
    pauses::Pauses,
    sweep::full_sweep::FullSweep,
};

/// The time that the server waits for a change before it answers with an empty page.
const MAX_AWAIT: Duration = Duration::from_millis(500);

/// After this many consecutive refusals, and no sooner than after
/// [`Settings::refused_for`](crate::Settings::refused_for), the position itself counts as refused.
const REFUSALS: u32 = 3;

/// A position cannot be lost if it is the server's own time, and was read less than this long ago.
const FRESH: Duration = Duration::from_mins(10);

/// Reports of a failure use this text as the end of the sentence "could not …".
const READING: &str = "read the change stream";

/// A position that is no longer usable.
#[derive(Debug)]
pub(super) struct Loss {
    pub(super) reason: String,
    pub(super) code: Option<i32>,
    /// Whether any cursor had worked before the position was lost.
    pub(super) worked: bool,
}

/// Why a cursor ended.
enum Cut {
    Failed(Error),
    Held(Item),
    Invalidated,
    Ended,
}

/// How the reader continues after a failure.
enum Failure {
    /// The stream is reopened; contains the reason as a sentence.
    Again(String),
    Lost(Loss),
}

/// The result of passing an item on.
enum Offered {
    Taken,
    Held(Item),
}

/// Consecutive refusals by the server to open the stream at the position.
#[derive(Debug, Clone, Copy)]
struct Refusals {
    count: u32,
    since: Instant,
}

pub(super) struct Reader {
    term: Arc<Term>,
    full_sweep: Arc<FullSweep>,
    out: mpsc::Sender<Item>,
    /// The position after everything that was passed on.
    mark: Mark,
    /// The event that is emitted when the stream is next opened successfully.
    opening: RescueEvent,
    /// The time when the mark was requested, if the mark is the server's time at that moment.
    fresh: Option<Instant>,
    refusals: Option<Refusals>,
    /// Whether any cursor has answered, even with an empty page.
    worked: bool,
    idle_since: Instant,
    /// The pauses between attempts to open the stream.
    pauses: Pauses,
    reminder: Reminder,
}

#[allow(
    clippy::large_futures,
    reason = "a poll of the driver makes the future large; the reader's task is on the heap"
)]
impl Reader {
    pub(super) fn new(
        term: Arc<Term>,
        full_sweep: Arc<FullSweep>,
        out: mpsc::Sender<Item>,
        mark: Mark,
        from: StartedFrom,
    ) -> Self {
        let fresh = match from {
            StartedFrom::Now | StartedFrom::AfterLoss => Some(Instant::now()),
            StartedFrom::Position | StartedFrom::ChangedPatterns | StartedFrom::Asked => None,
        };
        Self {
            term,
            full_sweep,
            out,
            mark,
            opening: RescueEvent::Opened { from },
            fresh,
            refusals: None,
            worked: false,
            idle_since: Instant::now(),
            pauses: Pauses::new(),
            reminder: Reminder::default(),
        }
    }

    /// Reads until the position is lost.
    pub(super) async fn run(mut self) -> Run<Loss> {
        let mut opened = false;
        loop {
            let cut = match self.term.unless_stopped(self.open()).await? {
                Ok(stream) => {
                    tracing::info!(how = ?self.opening, "the change stream is open");
                    self.term.report.emit(self.opening.clone());
                    opened = true;
                    self.refusals = None;
                    self.read(stream).await?
                }
                Err(error) => {
                    self.count_refusal(&error);
                    Cut::Failed(error)
                }
            };
            self.check()?;

            let cause = match cut {
                Cut::Invalidated => ReopenCause::Invalidated,
                Cut::Ended => ReopenCause::Ended,
                Cut::Held(item) => {
                    self.hand_on(item).await?;
                    ReopenCause::Held
                }
                Cut::Failed(error) => match self.judge(&error) {
                    Failure::Again(reason) => {
                        self.term.report.trouble(READING, &reason);
                        ReopenCause::Error(reason)
                    }
                    Failure::Lost(loss) => return Ok(loss),
                },
            };
            self.pause(&cause).await;

            // `opening` changes only after a success, so the first success emits the event of the
            // start.
            if opened {
                self.opening = RescueEvent::Reopened { cause };
            }
        }
    }

    async fn pause(&mut self, cause: &ReopenCause) {
        match cause {
            ReopenCause::Held => {
                tracing::debug!("reopening the change stream, which was closed while a change was held");
                return;
            }
            ReopenCause::Error(_) => {}
            ReopenCause::Invalidated | ReopenCause::Ended => {
                if self.reminder.is_due() {
                    tracing::warn!(?cause, "the change stream ended; reopening it at its position");
                }
            }
        }
        self.pauses.pause(&self.term.stop).await;
    }

    /// Counts a refused attempt to open the stream, if the server is otherwise healthy.
    fn count_refusal(&mut self, error: &Error) {
        if classify::is_transient(error) {
            self.refusals = None;
            return;
        }
        let known = self.refusals.unwrap_or(Refusals { count: 0, since: Instant::now() });
        self.refusals = Some(Refusals { count: known.count + 1, ..known });
    }

    /// Decides how the reader continues after an error that ended a cursor.
    fn judge(&mut self, error: &Error) -> Failure {
        let fault = classify::of_stream(error);
        let reason = classify::explain(error, fault);
        match fault {
            Fault::Fatal(_) => {
                self.refusals = None;
                Failure::Again(reason)
            }
            Fault::Transient if !self.is_refused() => Failure::Again(reason),
            // The position is the time that the server itself reported a short time ago, so it
            // cannot be lost.
            Fault::Transient | Fault::Lost if self.is_fresh() && self.refusals.is_some() => {
                Failure::Again(format!("{reason}; {}", classify::REFUSED))
            }
            Fault::Transient | Fault::Lost => {
                Failure::Lost(Loss { reason, code: error_codes::code(error), worked: self.worked })
            }
        }
    }

    fn is_fresh(&self) -> bool {
        self.fresh.is_some_and(|asked| asked.elapsed() < FRESH)
    }

    /// Whether the server has refused so often, and for so long, that the position counts as refused.
    fn is_refused(&self) -> bool {
        let Some(Refusals { count, since }) = self.refusals else {
            return false;
        };
        count >= REFUSALS && since.elapsed() >= self.term.settings.refused_for
    }

    async fn open(&self) -> Result<ChangeStream<RawChange>, Error> {
        let mongo = &self.term.mongo;
        let coverage = &self.term.plan.coverage;
        let stages = pipeline(coverage);

        // The option is `startAfter`, because unlike `resumeAfter` it works after an invalidate.
        let (after, at) = match &self.mark {
            Mark { token: Some(token), .. } => (Some(token.clone()), None),
            Mark { cluster_time, .. } => (None, *cluster_time),
        };
        let batch = u32::try_from(self.term.settings.page_size).unwrap_or(u32::MAX);
        let options = ChangeStreamOptions::builder()
            .start_after(after)
            .start_at_operation_time(at)
            .max_await_time(MAX_AWAIT)
            .batch_size(batch)
            .build();

        let stream = match Scope::of(coverage) {
            Scope::Cluster => mongo.client().watch().pipeline(stages).with_options(options).await?,
            Scope::Database(database) => {
                mongo.database(&database).watch().pipeline(stages).with_options(options).await?
            }
            Scope::Collection(database, collection) => {
                let collection = mongo.database(&database).collection::<Document>(&collection);
                collection.watch().pipeline(stages).with_options(options).await?.with_type()
            }
        };
        Ok(stream.with_type())
    }

    /// Reads one cursor to its end.
    async fn read(&mut self, mut stream: ChangeStream<RawChange>) -> Run<Cut> {
        // After a stop the cursor is not used again, because one of its polls may have been dropped.
        let cut = self.read_on(&mut stream).await?;
        if let Some(token) = self.newer(stream.resume_token()) {
            self.set_mark(token);
        }
        Ok(cut)
    }

    async fn read_on(&mut self, stream: &mut ChangeStream<RawChange>) -> Run<Cut> {
        let mut asked = false;
        loop {
            self.check()?;
            let next = match self.term.unless_stopped(stream.next_if_any()).await? {
                Ok(next) => next,
                Err(error) => return Ok(Cut::Failed(error)),
            };
            self.fresh = None;

            // The reply that opened the stream also contained the first batch, so an empty first
            // batch doesn't show that the cursor works.
            if next.is_some() || asked {
                self.delivered();
            }
            asked = true;

            let Some(change) = next else {
                if !stream.is_alive() {
                    return Ok(Cut::Ended);
                }
                self.idle(stream.resume_token());
                continue;
            };
            self.term.report.change_read();

            let kind = change.kind();
            match self.offer(self.item(kind, change)).await? {
                Offered::Held(item) => return Ok(Cut::Held(item)),
                Offered::Taken if kind == ChangeKind::Invalidate => return Ok(Cut::Invalidated),
                Offered::Taken => self.idle_since = Instant::now(),
            }
        }
    }

    fn item(&self, kind: ChangeKind, change: RawChange) -> Item {
        match kind {
            ChangeKind::Document => Item::Changed(Box::new(change)),
            ChangeKind::Invalidate => Item::UpTo(change.mark()),
            ChangeKind::Rename => {
                tracing::info!("a collection was renamed to a watched name; requesting a full sweep");
                self.full_sweep.request_twice();
                Item::UpTo(change.mark())
            }
        }
    }

    /// Records that a cursor works.
    fn delivered(&mut self) {
        self.pauses = Pauses::new();
        self.worked = true;
        self.term.report.healed(READING);
    }

    /// The token, unless the position is already at or after it.
    fn newer(&self, token: Option<ResumeToken>) -> Option<ResumeToken> {
        token.filter(|token| Some(token) != self.mark.token.as_ref())
    }

    /// Advances the position to this token.
    fn set_mark(&mut self, token: ResumeToken) {
        // If the token is unreadable, the earlier time is kept, which is still a low-water mark.
        let cluster_time = token::cluster_time(&token).or(self.mark.cluster_time);
        self.mark = Mark { token: Some(token), cluster_time };
    }

    /// Saves the token while the stream shows no changes, because the token advances nevertheless. If the
    /// token were not saved, the server would, when the stream is resumed, read all changes that were made
    /// elsewhere since the last saved token.
    fn idle(&mut self, token: Option<ResumeToken>) {
        let Some(token) = self.newer(token) else {
            return;
        };
        self.set_mark(token);
        self.term.report.moved();

        let all_taken = self.out.capacity() == self.out.max_capacity();
        if all_taken && self.idle_since.elapsed() >= self.term.settings.idle_save_interval {
            self.idle_since = Instant::now();
            // The result is ignored: if the follower no longer takes items, the reader notices that at its
            // next poll.
            let _ = self.out.try_send(Item::UpTo(self.mark.clone()));
        }
    }

    /// Passes an item on, or gives up when the cursor must not stay unread any longer.
    async fn offer(&self, item: Item) -> Run<Offered> {
        let item = match self.out.try_send(item) {
            Ok(()) => return Ok(Offered::Taken),
            Err(TrySendError::Closed(_)) => return Err(Halt),
            Err(TrySendError::Full(item)) => item,
        };

        let limit = tokio::time::sleep(self.term.settings.cursor_idle_limit);
        self.term.report.reading(Reading::Waits);
        let offered = tokio::select! {
            permit = self.out.reserve() => match permit {
                Ok(permit) => {
                    permit.send(item);
                    Ok(Offered::Taken)
                }
                Err(_) => Err(Halt),
            },
            () = limit => Ok(Offered::Held(item)),
            () = self.term.stop.cancelled() => Err(Halt),
        };
        self.term.report.reading(Reading::Reads);
        offered
    }

    /// Passes an item on, however long that takes.
    async fn hand_on(&self, item: Item) -> Run<()> {
        self.term.report.reading(Reading::Waits);
        let sent = self.term.unless_stopped(self.out.send(item)).await;
        self.term.report.reading(Reading::Reads);
        sent?.map_err(|_| Halt)
    }

    /// Halts if the term is over, or if the follower no longer takes items.
    fn check(&self) -> Run<()> {
        self.term.check()?;
        if self.out.is_closed() { Err(Halt) } else { Ok(()) }
    }
}

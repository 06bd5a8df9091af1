//! Reading the change stream: opens it, keeps it open, hands on what it shows, in order.
//!
//! ```text
//!      ┌──────────── pause ◀── error that passes ───┐
//!      ▼                                            │
//!   opening ──▶ reading ── held too long, invalidated, ended ──▶ opening, after the last token handed on
//!      │            │
//!      └────────────┴── position lost | stopped ──▶ Ended
//! ```
//!
//! It runs in a task of its own: a driver's cursor must not be used again after a poll of it was dropped, so a poll is raced
//! against nothing but the end, after which nothing uses the cursor. It reads at most one page ahead of what the other side has
//! taken, then waits.

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

use crate::{
    classify::{self, Fault},
    leadership::term::{Context, FullSweep},
    observe::event::{ReopenCause, RescueEvent, StartedFrom},
    observe::reminder::Reminder,
    send::commands::Pauses,
    stream::change::{Change, RawChange},
    stream::filter::{Scope, pipeline},
    stream::position::Mark,
    stream::token,
};

/// How long the server waits for something new before it answers that there is nothing.
const MAX_AWAIT: Duration = Duration::from_millis(500);

/// After so many refusals in a row, and no sooner than [`Settings::refused_for`](crate::Settings::refused_for), it is the
/// position that is refused.
const REFUSALS: u32 = 3;

/// For so long the server's own time is a position that it can't have lost.
const FRESH: Duration = Duration::from_secs(600);
const READING: &str = "read the change stream";

/// What the stream shows, in order.
#[derive(Debug)]
pub(crate) enum Item {
    /// A document was changed. Not yet read: the server waits for its reader, and shall not wait for that as well.
    Changed(Box<RawChange>),
    /// Nothing that matters lies before this.
    Passed(Mark),
}

/// Why reading ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Stopped,
    Lost {
        reason: String,
        code: Option<i32>,
        /// Whether a cursor had delivered before.
        worked: bool,
    },
}

/// Why one cursor ended.
enum Cut {
    Stopped,
    Failed(Error),
    Held(Item),
    Invalidated,
    Ended,
}

pub(crate) struct Reader {
    context: Arc<Context>,
    out: mpsc::Sender<Item>,
    /// Behind everything that was handed on.
    mark: Mark,
    /// What the next successful opening is announced as.
    opening: RescueEvent,
    /// When the mark was asked for, where it is the server's time of then.
    fresh: Option<Instant>,
    /// How often in a row the server has refused to open at this position, and since when.
    refusals: Option<(u32, Instant)>,
    /// Whether a cursor has delivered, be it that there is nothing.
    worked: bool,
    idle_since: Instant,
}

impl Reader {
    pub(crate) fn new(context: Arc<Context>, out: mpsc::Sender<Item>, mark: Mark, from: StartedFrom) -> Self {
        let opening = RescueEvent::Opened { from };
        let fresh = matches!(from, StartedFrom::Now | StartedFrom::AfterLoss).then(Instant::now);
        let idle_since = Instant::now();
        Self { context, out, mark, opening, fresh, refusals: None, worked: false, idle_since }
    }

    pub(crate) async fn run(mut self) -> Ended {
        let (mut pauses, mut reminder) = (Pauses::new(), Reminder::default());
        let mut opened = false;
        loop {
            let context = self.context.clone();
            let cut = match context.stop.run_until_cancelled(self.open()).await {
                None => Cut::Stopped,
                Some(Ok(stream)) => {
                    tracing::info!(how = ?self.opening, "the change stream is open");
                    self.context.report.emit(self.opening.clone());
                    (opened, self.refusals) = (true, None);
                    self.read(stream, &mut pauses).await
                }
                Some(Err(error)) => {
                    let (count, since) = self.refusals.unwrap_or((0, Instant::now()));
                    self.refusals = (!classify::passes(&error)).then_some((count + 1, since));
                    Cut::Failed(error)
                }
            };
            let cause = match cut {
                _ if self.is_over() => return Ended::Stopped,
                Cut::Stopped => return Ended::Stopped,
                Cut::Invalidated => ReopenCause::Invalidated,
                Cut::Ended => ReopenCause::Ended,
                Cut::Held(item) => {
                    if !self.hand_on(item).await {
                        return Ended::Stopped;
                    }
                    ReopenCause::Held
                }
                Cut::Failed(error) => match self.judge(error) {
                    Ok(error) => {
                        self.context.report.trouble(READING, &error);
                        ReopenCause::Error(error)
                    }
                    Err(ended) => return ended,
                },
            };
            match &cause {
                ReopenCause::Held => {
                    tracing::debug!("opening the change stream again behind a change that was held for long");
                }
                ReopenCause::Error(_) => pauses.pause(&self.context.stop).await,
                ReopenCause::Invalidated | ReopenCause::Ended => {
                    if reminder.is_due() {
                        tracing::warn!(
                            ?cause,
                            "the change stream ended; opening it again from where it stood"
                        );
                    }
                    pauses.pause(&self.context.stop).await;
                }
            }
            if opened {
                self.opening = RescueEvent::Reopened { cause };
            }
        }
    }

    /// What an error that ends a cursor means: its text when it is tried again.
    fn judge(&mut self, error: Error) -> Result<String, Ended> {
        let fault = classify::of_stream(&error);
        let reason = classify::explain(&error, fault);
        match fault {
            Fault::Fatal(_) => {
                self.refusals = None;
                Ok(reason)
            }
            Fault::Passing if !self.is_refused() => Ok(reason),
            // The server's own time cannot be lost a moment later.
            Fault::Passing | Fault::Lost if self.is_fresh() && self.refusals.is_some() => {
                Ok(format!("{reason}; {}", classify::REFUSED))
            }
            Fault::Passing | Fault::Lost => {
                Err(Ended::Lost { reason, code: error_codes::code(&error), worked: self.worked })
            }
        }
    }

    fn is_fresh(&self) -> bool {
        self.fresh.is_some_and(|asked| asked.elapsed() < FRESH)
    }

    fn is_refused(&self) -> bool {
        let limit = self.context.settings.refused_for;
        self.refusals.is_some_and(|(count, since)| count >= REFUSALS && since.elapsed() >= limit)
    }

    async fn open(&self) -> Result<ChangeStream<RawChange>, Error> {
        let (client, settings) = (&self.context.client, &self.context.settings);
        let coverage = &self.context.plan.coverage;
        let stages = pipeline(coverage);
        // `startAfter`, since unlike `resumeAfter` it goes on behind an invalidate.
        let (after, at) = match &self.mark {
            Mark { token: Some(token), .. } => (Some(token.clone()), None),
            Mark { cluster_time, .. } => (None, *cluster_time),
        };
        let batch = u32::try_from(settings.page_size).unwrap_or(u32::MAX);
        let options = ChangeStreamOptions::builder()
            .start_after(after)
            .start_at_operation_time(at)
            .max_await_time(MAX_AWAIT)
            .batch_size(batch)
            .build();
        let stream = match Scope::of(coverage) {
            Scope::Cluster => client.watch().pipeline(stages).with_options(options).await?,
            Scope::Database(database) => {
                let database = client.database(&database);
                database.watch().pipeline(stages).with_options(options).await?
            }
            Scope::Collection(database, collection) => {
                let collection = client.database(&database).collection::<Document>(&collection);
                collection.watch().pipeline(stages).with_options(options).await?.with_type()
            }
        };
        Ok(stream.with_type())
    }

    /// Reads one cursor to its end.
    async fn read(&mut self, mut stream: ChangeStream<RawChange>, pauses: &mut Pauses) -> Cut {
        let cut = self.read_on(&mut stream, pauses).await;
        // After a stop a poll of it may have been dropped.
        if !matches!(cut, Cut::Stopped) {
            self.set_mark(stream.resume_token());
        }
        cut
    }

    async fn read_on(&mut self, stream: &mut ChangeStream<RawChange>, pauses: &mut Pauses) -> Cut {
        let mut asked = false;
        let context = self.context.clone();
        while !self.is_over() {
            let next = match context.stop.run_until_cancelled(stream.next_if_any()).await {
                None => return Cut::Stopped,
                Some(Ok(next)) => next,
                Some(Err(error)) => return Cut::Failed(error),
            };
            self.fresh = None;
            // That there is nothing in the first batch was said by the opening itself.
            if next.is_some() || asked {
                *pauses = Pauses::new();
                self.worked = true;
                self.context.report.healed(READING);
            }
            asked = true;
            if next.is_some() {
                self.context.report.metrics.events.increment(1);
                self.context.report.moved();
            }
            let item = match next.map(RawChange::sort) {
                Some(Change::Document(change)) => Item::Changed(change),
                Some(Change::Renamed(mark)) => {
                    tracing::info!("a collection was renamed to one that is watched; sweeping");
                    FullSweep::request_twice(&self.context);
                    Item::Passed(mark)
                }
                Some(Change::Invalidate(mark)) => {
                    return match self.offer(Item::Passed(mark)).await {
                        Offered::Taken => Cut::Invalidated,
                        Offered::Held(item) => Cut::Held(item),
                        Offered::Stopped => Cut::Stopped,
                    };
                }
                None if !stream.is_alive() => return Cut::Ended,
                None => {
                    self.pass_idle(stream.resume_token());
                    continue;
                }
            };
            match self.offer(item).await {
                Offered::Taken => self.idle_since = Instant::now(),
                Offered::Held(item) => return Cut::Held(item),
                Offered::Stopped => return Cut::Stopped,
            }
        }
        Cut::Stopped
    }

    /// The position is behind this token from now on; false when it was before.
    fn set_mark(&mut self, token: Option<ResumeToken>) -> bool {
        let Some(token) = token.filter(|token| Some(token) != self.mark.token.as_ref()) else {
            return false;
        };
        // An unreadable token keeps the earlier time, which is a low-water mark still.
        let cluster_time = token::cluster_time(&token).or(self.mark.cluster_time);
        self.mark = Mark { token: Some(token), cluster_time };
        true
    }

    /// The token of a stream that shows nothing moves on all the same; were it not saved, resuming would read everything
    /// again that others wrote since.
    fn pass_idle(&mut self, token: Option<ResumeToken>) {
        if !self.set_mark(token) {
            return;
        }
        self.context.report.moved();
        let all_taken = self.out.capacity() == self.out.max_capacity();
        if all_taken && self.idle_since.elapsed() >= self.context.settings.idle_save_interval {
            self.idle_since = Instant::now();
            // Nobody there to take it: the next poll finds out.
            let _ = self.out.try_send(Item::Passed(self.mark.clone()));
        }
    }

    /// Hands on, unless that takes longer than the cursor may be left alone.
    async fn offer(&self, item: Item) -> Offered {
        let item = match self.out.try_send(item) {
            Ok(()) => return Offered::Taken,
            Err(TrySendError::Closed(_)) => return Offered::Stopped,
            Err(TrySendError::Full(item)) => item,
        };
        let limit = tokio::time::sleep(self.context.settings.cursor_idle_limit);
        self.context.report.reader_waits(true);
        let offered = tokio::select! {
            permit = self.out.reserve() => match permit {
                Ok(permit) => {
                    permit.send(item);
                    Offered::Taken
                }
                Err(_) => Offered::Stopped,
            },
            () = limit => Offered::Held(item),
            () = self.context.stop.cancelled() => Offered::Stopped,
        };
        self.context.report.reader_waits(false);
        offered
    }

    /// Hands on, however long it takes; false when stopped.
    async fn hand_on(&self, item: Item) -> bool {
        self.context.report.reader_waits(true);
        let sent = self.context.stop.run_until_cancelled(self.out.send(item)).await;
        self.context.report.reader_waits(false);
        sent.is_some_and(|sent| sent.is_ok())
    }

    fn is_over(&self) -> bool {
        self.context.is_over() || self.out.is_closed()
    }
}

/// What became of an item.
enum Offered {
    Taken,
    Held(Item),
    Stopped,
}

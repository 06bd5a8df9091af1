//! Following the change stream `delay` late.
//!
//! # Flow
//! The change at the head is held until it is `delay` old by the server's clock; nothing behind it is dealt with before.
//! So the oplog is the delay queue, memory doesn't grow with the delay, and the position is always a low-water mark.
//! What is old enough by then forms a page; when everything the page needed is confirmed by the broker, the position may
//! move behind it.
//!
//! # Crash at any point
//! The position stands before everything that was not confirmed; changes behind it are read again, and checked against
//! their documents, which know what is still undelivered. At worst a page's commands are sent twice.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::clock::{later, until};
use mongodb::bson::DateTime;
use tokio::sync::mpsc;

use crate::{
    RescuerError,
    change::Filled,
    context::Context,
    event::{RescueEvent, StartedFrom},
    fault,
    page::{self, Settled},
    position::{Mark, Saved},
    stream::{Ended, Item, Reader},
};

/// Why following ended.
#[derive(Debug)]
pub(crate) enum Followed {
    Stopped,
    Lost {
        reason: String,
        code: Option<i32>,
        /// Whether the stream had delivered before.
        worked: bool,
    },
}

pub(crate) struct Follower<'a> {
    context: &'a Arc<Context>,
    items: mpsc::Receiver<Item>,
    /// Taken from the reader, but not old enough when a page was closed.
    next: Option<Box<Filled>>,
    settled: Settled,
    /// Everything before it was dealt with; set while that isn't saved.
    unsaved: Option<Mark>,
    saved: Instant,
}

/// Follows from a mark until told to stop, or the position is lost.
pub(crate) async fn follow(
    context: &Arc<Context>,
    mark: Mark,
    from: StartedFrom,
) -> Result<Followed, RescuerError> {
    let (out, items) = mpsc::channel(context.settings.page_size);
    let reader = tokio::spawn(Reader::new(context.clone(), out, mark, from).run());
    let saved = Instant::now();
    let settled = Settled::default();
    let follower = Follower { context, items, next: None, settled, unsaved: None, saved };
    // When this fails, the reader finds nobody there to hand on to, and ends.
    follower.run().await?;
    match reader.await {
        Ok(Ended::Stopped) => Ok(Followed::Stopped),
        Ok(Ended::Lost { reason, code, worked }) => Ok(Followed::Lost { reason, code, worked }),
        Ok(Ended::Refused { advice, source }) => {
            Err(RescuerError::Refused { doing: "read the change stream", advice, source })
        }
        Err(error) if error.is_panic() => Err(RescuerError::Panicked("what reads the change stream")),
        Err(_) => Ok(Followed::Stopped),
    }
}

impl Follower<'_> {
    async fn run(mut self) -> Result<(), RescuerError> {
        loop {
            self.save_if_due().await?;
            match self.take().await {
                Taken::Nothing => {}
                Taken::End => break,
                Taken::Passed(mark) => {
                    self.context.report.head(None);
                    self.unsaved = Some(mark);
                }
                Taken::Filled(filled) => {
                    if !self.hold(&filled).await? || !self.deal_with_page(*filled).await? {
                        break;
                    }
                }
            }
        }
        self.save().await
    }

    /// The next item; nothing when a position has to be saved first.
    async fn take(&mut self) -> Taken {
        if let Some(filled) = self.next.take() {
            return Taken::Filled(filled);
        }
        let interval = self.context.settings.busy_save_interval;
        let due = match self.unsaved {
            Some(_) => interval.saturating_sub(self.saved.elapsed()),
            None => Duration::MAX,
        };
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => Taken::End,
            item = self.items.recv() => item.map_or(Taken::End, Taken::from),
            () = tokio::time::sleep(due) => Taken::Nothing,
        }
    }

    /// Waits until a change is old enough; false when told to stop before, or nothing is read any more.
    async fn hold(&mut self, filled: &Filled) -> Result<bool, RescuerError> {
        let due = self.due(filled);
        let mut announced = false;
        loop {
            let Some(now) = self.context.now().await? else {
                return Ok(false);
            };
            let wait = until(now, due);
            if wait.is_zero() {
                return Ok(!self.context.is_over());
            }
            self.context.report.moved();
            if !announced {
                announced = true;
                self.context.report.head(None);
                self.context.report.emit(RescueEvent::Holding { document: filled.document.clone() });
                if wait > self.context.settings.busy_save_interval {
                    self.save().await?;
                }
            }
            // Without its reader, all behind this change goes unread; a hold can take hours. The position stands before
            // it, and what follows a loss finds it.
            if self.items.is_closed() {
                return Ok(false);
            }
            // In steps, also because the server's clock may be set meanwhile.
            let step = tokio::time::sleep(wait.min(LONGEST_NAP));
            if self.context.stop.run_until_cancelled(step).await.is_none() {
                return Ok(false);
            }
        }
    }

    /// Deals with a change that is old enough and with all those behind it that are, as far as they have arrived.
    /// False when told to stop before they were done.
    async fn deal_with_page(&mut self, first: Filled) -> Result<bool, RescuerError> {
        let Some(now) = self.context.now().await? else {
            return Ok(false);
        };
        let due = self.due(&first);
        self.context.report.head(Some((due, now)));
        let mut mark = first.mark.clone();
        let mut page = vec![first];
        while page.len() < self.context.settings.page_size {
            match self.items.try_recv().map_or(Taken::Nothing, Taken::from) {
                Taken::Passed(passed) => mark = passed,
                Taken::Filled(filled) if self.due(&filled) <= now => {
                    mark = filled.mark.clone();
                    page.push(*filled);
                }
                Taken::Filled(filled) => {
                    self.next = Some(filled);
                    break;
                }
                Taken::Nothing | Taken::End => break,
            }
        }
        let done = page::check(self.context, &mut self.settled, page, due).await?;
        if done {
            self.unsaved = Some(mark);
        }
        Ok(done)
    }

    fn due(&self, filled: &Filled) -> DateTime {
        later(filled.at, self.context.plan.delay)
    }

    async fn save_if_due(&mut self) -> Result<(), RescuerError> {
        match self.saved.elapsed() >= self.context.settings.busy_save_interval {
            true => self.save().await,
            false => Ok(()),
        }
    }

    /// Saves what is not saved yet. A failure that passes is no error: the position stays unsaved and the next save has it.
    async fn save(&mut self) -> Result<(), RescuerError> {
        // Told to stop, it saves all the same; after the lease it doesn't.
        if !self.context.held.lasts() {
            self.context.is_over();
            return Ok(());
        }
        let Some(mark) = self.unsaved.take() else {
            return Ok(());
        };
        self.saved = Instant::now();
        let saved = match self.context.clock.now().await {
            Ok(now) => self.context.positions.save(&mark, self.context.held.epoch, now).await,
            Err(error) => Err(error),
        };
        match saved {
            Ok(Saved::Done) => {
                let cluster_time = mark.cluster_time;
                self.context.report.emit(RescueEvent::PositionSaved { cluster_time });
                Ok(())
            }
            Ok(Saved::Fenced) => {
                self.context.step_back("another rescuer has saved a position, or somebody deleted it");
                Ok(())
            }
            Err(error) => {
                let error = fault::text(&error);
                tracing::warn!(error, "the position could not be saved; trying again");
                self.unsaved = Some(mark);
                Ok(())
            }
        }
    }
}

const LONGEST_NAP: Duration = Duration::from_secs(1);

enum Taken {
    Filled(Box<Filled>),
    Passed(Mark),
    Nothing,
    End,
}

impl From<Item> for Taken {
    fn from(item: Item) -> Self {
        match item {
            Item::Passed(mark) => Self::Passed(mark),
            Item::Changed(change) => match change.read() {
                Ok(filled) => Self::Filled(filled),
                Err(mark) => {
                    tracing::warn!(
                        "a change names no document that can be named in a command; it is left to the sweep"
                    );
                    Self::Passed(mark)
                }
            },
        }
    }
}

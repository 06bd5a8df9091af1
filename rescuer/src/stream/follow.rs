//! Follows the change stream with the delay.
//!
//! # Flow
//! The change at the head is held until it is `delay` old by the server's clock, or has been held for that
//! long; later changes are not processed before it. So the oplog is the delay queue, memory doesn't grow with
//! the delay, and the position is always a low-water mark. The changes that are old enough by then form a
//! page; when everything the page needed is confirmed by the broker, the position may move behind it.
//!
//! # Crash at any point
//! The position is before everything that was not confirmed; changes behind it are read again, and checked against
//! their documents, which hold what is still undelivered. At worst a page's commands are sent twice.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use mongodb::{bson::DateTime, error::Error};
use tokio::{
    sync::mpsc,
    time::{error::Elapsed, timeout},
};

use super::{
    age::Age,
    change::{Filled, Item},
    page::PageChecker,
    position::{Mark, Positions, Saved},
};
use crate::{
    classify,
    halt::{Halt, Run, with_grace},
    leadership::term::Term,
    observe::{event::RescueEvent, reminder::Reminder},
    pauses::Pauses,
};

/// As it is reported when it fails: "could not …".
const SAVING: &str = "save the position";
/// Above the time that the server has for the majority.
const LONGEST_SAVE: Duration = Duration::from_secs(15);
const LONGEST_NAP: Duration = Duration::from_secs(1);

pub(super) struct Follower {
    term: Arc<Term>,
    positions: Positions,
    checker: PageChecker,
    items: mpsc::Receiver<Item>,
    /// Taken from the reader, but not old enough when a page was closed.
    next: Option<Box<Filled>>,
    age: Age,
    /// Every change before it was processed; set while that isn't saved.
    unsaved: Option<Mark>,
    /// The earliest time of the next save.
    save_at: Instant,
    /// The pauses between attempts to save a position.
    pauses: Pauses,
    unnamed: Reminder,
}

/// The changes that the follower holds.
enum InHand {
    Filled(Box<Filled>),
    /// There is no relevant change before this.
    UpTo(Mark),
    /// A position has to be saved first.
    Nothing,
}

impl Follower {
    pub(super) fn new(
        term: Arc<Term>,
        positions: Positions,
        checker: PageChecker,
        items: mpsc::Receiver<Item>,
    ) -> Self {
        Self {
            checker,
            items,
            next: None,
            age: Age::new(term.plan.delay),
            unsaved: None,
            save_at: Instant::now() + term.settings.busy_save_interval,
            pauses: Pauses::new(),
            unnamed: Reminder::default(),
            term,
            positions,
        }
    }

    /// Follows until a stop, or until the reader has ended.
    pub(super) async fn run(mut self) {
        let Err(Halt) = self.follow().await;
        self.save().await;
    }

    async fn follow(&mut self) -> Run<Infallible> {
        loop {
            if Instant::now() >= self.save_at {
                self.save().await;
            }

            match self.take().await? {
                InHand::Nothing => {}
                InHand::UpTo(mark) => {
                    self.term.report.head_on_time();
                    self.unsaved = Some(mark);
                }
                InHand::Filled(filled) => {
                    self.hold(&filled).await?;
                    self.deal_with_page(*filled).await?;
                }
            }
        }
    }

    /// The next item; `None` if a position has to be saved first. Halts if the reader has ended.
    async fn take(&mut self) -> Run<InHand> {
        if let Some(filled) = self.next.take() {
            return Ok(InHand::Filled(filled));
        }
        let due = match self.unsaved {
            Some(_) => self.save_at.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        };

        tokio::select! {
            biased;
            () = self.term.stop.cancelled() => Err(Halt),
            item = self.items.recv() => Ok(self.read(item.ok_or(Halt)?)),
            () = tokio::time::sleep(due) => Ok(InHand::Nothing),
        }
    }

    fn read(&mut self, item: Item) -> InHand {
        let change = match item {
            Item::Changed(change) => change,
            Item::UpTo(mark) => return InHand::UpTo(mark),
        };
        if let Some(filled) = change.filled() {
            return InHand::Filled(Box::new(filled));
        }

        if self.unnamed.is_due() {
            tracing::warn!(
                "a change has a document key that no command can carry; such documents are left \
                to the sweep"
            );
        }
        InHand::UpTo(change.mark())
    }

    /// Waits until a change is old enough.
    async fn hold(&mut self, filled: &Filled) -> Run<()> {
        let mut announced = false;
        loop {
            let now = self.term.now().await?;
            let wait = self.age.wait(filled, now);
            if wait.is_zero() {
                self.age.learn(filled, now);
                return self.term.check();
            }

            if !announced {
                announced = true;
                self.term.report.head_on_time();
                self.term.report.emit(RescueEvent::Holding { document: filled.document.clone() });
                if wait > self.term.settings.busy_save_interval {
                    self.save().await;
                }
            }

            // Without its reader, all changes after this one stay unread; a hold can take hours. The position
            // is before this change, so a start after the loss finds it.
            if self.items.is_closed() {
                return Err(Halt);
            }
            // In steps, also because the server's clock may be set meanwhile.
            self.term.sleep(wait.min(LONGEST_NAP)).await?;
        }
    }

    /// Processes a change that is old enough, and all later ones that have arrived and are old enough.
    async fn deal_with_page(&mut self, first: Filled) -> Run<()> {
        let now = self.term.now().await?;
        // Of a change that is old enough only by the time it was held, it is only known that it is due by
        // now.
        let due = self.age.due(&first).min(now);
        self.term.report.head_due(due, now);

        let (page, mark) = self.fill_page(first, now);
        self.checker.check(page, due).await?;
        self.unsaved = Some(mark);
        Ok(())
    }

    /// A page of changes that are old enough, and the position after it.
    fn fill_page(&mut self, first: Filled, now: DateTime) -> (Vec<Filled>, Mark) {
        let mut mark = first.mark.clone();
        let mut page = vec![first];

        while page.len() < self.term.settings.page_size {
            let Ok(item) = self.items.try_recv() else {
                break;
            };

            match self.read(item) {
                InHand::UpTo(behind) => mark = behind,
                InHand::Filled(filled) if self.age.wait(&filled, now).is_zero() => {
                    mark = filled.mark.clone();
                    page.push(*filled);
                }
                InHand::Filled(filled) => {
                    self.next = Some(filled);
                    break;
                }
                InHand::Nothing => break,
            }
        }

        (page, mark)
    }

    /// Saves a position that is not saved yet, even after a stop. After a failure it stays unsaved, and the
    /// next save has it.
    async fn save(&mut self) {
        if !self.term.held.lasts() {
            // Steps back, unless it did so already: no position is saved after the lease.
            self.term.is_over();
            return;
        }
        let Some(mark) = self.unsaved.take() else {
            return;
        };

        self.save_at = Instant::now() + self.term.settings.busy_save_interval;
        match self.write(&mark).await {
            Ok(Saved::Done) => {
                self.pauses = Pauses::new();
                self.term.report.healed(SAVING);
                let cluster_time = mark.cluster_time;
                self.term.report.emit(RescueEvent::PositionSaved { cluster_time });
            }
            Ok(Saved::Fenced) => {
                self.term.step_back("another rescuer has saved a position, or the position was deleted");
            }
            Err(error) => {
                self.save_at = Instant::now() + self.pauses.next();
                self.term.report.trouble(SAVING, &error);
                self.unsaved = Some(mark);
            }
        }
    }

    /// Writes a position. A server that doesn't answer delays a stop only for a moment.
    async fn write(&self, mark: &Mark) -> Result<Saved, String> {
        let write = timeout(LONGEST_SAVE, async {
            let now = self.term.mongo.now().await?;
            self.positions.save(mark, self.term.held.epoch, now).await
        });

        let last = self.term.settings.last_write();
        let written: Run<Result<Result<Saved, Error>, Elapsed>> =
            with_grace(&self.term.stop, last, write).await;
        match written {
            Ok(Ok(written)) => written.map_err(|error| classify::explain(&error, classify::of(&error))),
            Ok(Err(_)) => Err(format!("MongoDB has not answered for {} s", LONGEST_SAVE.as_secs())),
            Err(Halt) => Err("MongoDB has not answered before the end".into()),
        }
    }
}

//! Follows the change stream with a delay.
//!
//! # Flow
//! The oldest unprocessed change is held until it is `delay` old by the server's clock, or has been held for
//! that long. Later changes are not processed before it. So the oplog serves as the delay queue, memory
//! doesn't grow with the delay, and the position is always a low-water mark. Once the held change is old
//! enough, it forms a page together with all later changes that are also old enough. When the broker has
//! confirmed all commands for the page, the position may advance past the page.
//!
//! # Crash at any point
//! The saved position is before every change whose command was not confirmed. After a restart, the changes
//! after the position are read again, and their documents are checked for undelivered messages. At worst the
//! commands for a page are sent twice.

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
    low_water::{InHand, LowWater, Page, fill_page},
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

/// Reports of a failure use this text as the end of the sentence "could not …".
const SAVING: &str = "save the position";
/// The time limit for a save. It is longer than the time that the server has to reach the majority.
const LONGEST_SAVE: Duration = Duration::from_secs(15);
const LONGEST_NAP: Duration = Duration::from_secs(1);

pub(super) struct Follower {
    term: Arc<Term>,
    positions: Positions,
    checker: PageChecker,
    items: mpsc::Receiver<Item>,
    /// A change that was taken from the reader but was not old enough for the last page.
    next: Option<Box<Filled>>,
    age: Age,
    low_water: LowWater<Mark>,
    /// The earliest time of the next save.
    save_at: Instant,
    /// The pauses between attempts to save a position.
    pauses: Pauses,
    unnamed: Reminder,
}

type Read = InHand<Box<Filled>, Mark>;

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
            low_water: LowWater::default(),
            save_at: Instant::now() + term.settings.busy_save_interval,
            pauses: Pauses::new(),
            unnamed: Reminder::default(),
            term,
            positions,
        }
    }

    /// Follows until a stop is requested, or until the reader has ended.
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
                None => {}
                Some(InHand::UpTo(mark)) => {
                    self.term.report.head_on_time();
                    self.low_water.reach(mark);
                }
                Some(InHand::Change(filled)) => {
                    self.hold(&filled).await?;
                    self.deal_with_page(filled).await?;
                }
            }
        }
    }

    /// The next item, or `None` if a position has to be saved first. Halts if the reader has ended.
    async fn take(&mut self) -> Run<Option<Read>> {
        if let Some(filled) = self.next.take() {
            return Ok(Some(InHand::Change(filled)));
        }
        let due = if self.low_water.is_unsaved() {
            self.save_at.saturating_duration_since(Instant::now())
        } else {
            Duration::MAX
        };

        tokio::select! {
            biased;
            () = self.term.stop.cancelled() => Err(Halt),
            item = self.items.recv() => Ok(Some(read(item.ok_or(Halt)?, &mut self.unnamed))),
            () = tokio::time::sleep(due) => Ok(None),
        }
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

            // If the reader has ended, no later change is read, and holding could take hours. The saved
            // position is before this change, so the next start finds it.
            if self.items.is_closed() {
                return Err(Halt);
            }
            // Sleeps in steps, because the server's clock may be set in the meantime.
            self.term.sleep(wait.min(LONGEST_NAP)).await?;
        }
    }

    /// Processes a change that is old enough, together with all later changes that have arrived and are old
    /// enough.
    async fn deal_with_page(&mut self, first: Box<Filled>) -> Run<()> {
        let now = self.term.now().await?;
        // If a change is old enough only because it was held for the delay, its due time is unknown, but is not
        // later than now.
        let due = self.age.due(&first).min(now);
        self.term.report.head_due(due, now);

        let Page { changes, mark, next } = self.fill_page(first, now);
        self.next = next;
        self.checker.check(changes.into_iter().map(|change| *change).collect(), due).await?;
        self.low_water.reach(mark);
        Ok(())
    }

    /// A page of changes that are old enough, and the position after it.
    fn fill_page(&mut self, first: Box<Filled>, now: DateTime) -> Page<Box<Filled>, Mark> {
        let (items, unnamed, age) = (&mut self.items, &mut self.unnamed, &self.age);
        let next = || items.try_recv().ok().map(|item| read(item, unnamed));
        fill_page(
            first,
            self.term.settings.page_size,
            |change| change.mark.clone(),
            next,
            |change| age.wait(change, now).is_zero(),
        )
    }

    /// Saves a position that is not saved yet, even after a stop. After a failure the position
    /// stays unsaved until the next save.
    async fn save(&mut self) {
        if !self.term.held.lasts() {
            // If the lease is over, this call ends the term; once the lease is over, no position is
            // saved.
            self.term.is_over();
            return;
        }
        let Some(mark) = self.low_water.take() else {
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
                self.low_water.reach(mark);
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
            Err(Halt) => Err("MongoDB did not answer within the time for the last write".into()),
        }
    }
}

/// Reads one item.
fn read(item: Item, unnamed: &mut Reminder) -> Read {
    let change = match item {
        Item::Changed(change) => change,
        Item::UpTo(mark) => return InHand::UpTo(mark),
    };
    if let Some(filled) = change.filled() {
        return InHand::Change(Box::new(filled));
    }

    if unnamed.is_due() {
        tracing::warn!(
            "a change has a document key that no command can carry; such documents are left \
             to the sweep"
        );
    }
    InHand::UpTo(change.mark())
}

//! Following the change stream `delay` late.
//!
//! # Flow
//! The change at the head is held until it is `delay` old by the server's clock, or has been in hand for that long; nothing
//! behind it is dealt with before.
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

use tokio::{sync::mpsc, time::timeout};

use crate::{
    RescuerError, classify,
    leadership::term::{Context, with_grace},
    observe::event::{RescueEvent, StartedFrom},
    observe::reminder::Reminder,
    send::commands::Pauses,
    stream::age::Age,
    stream::change::Filled,
    stream::page::{self, Settled},
    stream::position::{Mark, Saved},
    stream::reader::{Ended, Item, Reader},
    stream::set_aside::Aside,
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
    age: Age,
    settled: Settled,
    aside: Aside,
    /// Everything before it was dealt with; set while that isn't saved.
    unsaved: Option<Mark>,
    /// When to save next, at the soonest.
    save_at: Instant,
    /// Between tries to save a position.
    pauses: Pauses,
    unnamed: Reminder,
}

/// Follows from a mark until told to stop, or the position is lost.
pub(crate) async fn follow(
    context: &Arc<Context>,
    mark: Mark,
    from: StartedFrom,
) -> Result<Followed, RescuerError> {
    let (out, items) = mpsc::channel(context.settings.page_size);
    let reader = tokio::spawn(Reader::new(context.clone(), out, mark, from).run());
    let follower = Follower {
        context,
        items,
        next: None,
        age: Age::new(context.plan.delay),
        settled: Settled::default(),
        aside: Aside::default(),
        unsaved: None,
        save_at: Instant::now() + context.settings.busy_save_interval,
        pauses: Pauses::new(),
        unnamed: Reminder::default(),
    };
    // When it ends, the reader finds that nobody takes what it reads, and ends too.
    follower.run().await;

    match reader.await {
        Ok(Ended::Stopped) => Ok(Followed::Stopped),
        Ok(Ended::Lost { reason, code, worked }) => Ok(Followed::Lost { reason, code, worked }),
        Err(error) if error.is_panic() => {
            Err(RescuerError::Panicked("the task that reads the change stream"))
        }
        Err(_) => Ok(Followed::Stopped),
    }
}

impl Follower<'_> {
    async fn run(mut self) {
        loop {
            self.save_if_due().await;
            match self.take().await {
                Taken::Nothing => {}
                Taken::End => break,
                Taken::Passed(mark) => {
                    self.context.report.head(None);
                    self.unsaved = Some(mark);
                }
                Taken::Filled(filled) => {
                    if !self.hold(&filled).await || !self.deal_with_page(*filled).await {
                        break;
                    }
                }
            }
        }
        self.save().await;
    }

    /// The next item; nothing when a position has to be saved first.
    async fn take(&mut self) -> Taken {
        if let Some(filled) = self.next.take() {
            return Taken::Filled(filled);
        }
        let due = match self.unsaved {
            Some(_) => self.save_at.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        };
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => Taken::End,
            item = self.items.recv() => match item {
                Some(item) => self.sort(item),
                None => Taken::End,
            },
            () = tokio::time::sleep(due) => Taken::Nothing,
        }
    }

    fn sort(&mut self, item: Item) -> Taken {
        match item {
            Item::Passed(mark) => Taken::Passed(mark),
            Item::Changed(change) => match change.read() {
                Ok(filled) => Taken::Filled(filled),
                Err(mark) => {
                    if self.unnamed.is_due() {
                        tracing::warn!(
                            "a change names no document that a command can name; such are left to the sweep"
                        );
                    }
                    Taken::Passed(mark)
                }
            },
        }
    }

    /// Waits until a change is old enough; false when stopped before, or nothing is read any more.
    async fn hold(&mut self, filled: &Filled) -> bool {
        let mut announced = false;
        loop {
            let Some(now) = self.context.now().await else {
                return false;
            };
            let wait = self.age.wait(filled, now);
            if wait.is_zero() {
                self.age.learn(filled, now);
                return !self.context.is_over();
            }
            if !announced {
                announced = true;
                self.context.report.head(None);
                self.context.report.emit(RescueEvent::Holding { document: filled.document.clone() });
                if wait > self.context.settings.busy_save_interval {
                    self.save().await;
                }
            }

            // Without its reader, all behind this change goes unread; a hold can take hours. The position stands before
            // it, and what follows a loss finds it.
            if self.items.is_closed() {
                return false;
            }

            // In steps, also because the server's clock may be set meanwhile.
            let step = tokio::time::sleep(wait.min(LONGEST_NAP));
            if self.context.stop.run_until_cancelled(step).await.is_none() {
                return false;
            }
        }
    }

    /// Deals with a change that is old enough and with all those behind it that are, as far as they have arrived.
    /// False when stopped before they were done.
    async fn deal_with_page(&mut self, first: Filled) -> bool {
        let Some(now) = self.context.now().await else {
            return false;
        };
        // Of a change that is old enough by its time in hand alone, it is only known that it is due by now.
        let due = self.age.due(&first).min(now);
        self.context.report.head(Some((due, now)));

        let mut mark = first.mark.clone();
        let mut page = vec![first];
        while page.len() < self.context.settings.page_size {
            let Ok(item) = self.items.try_recv() else {
                break;
            };
            match self.sort(item) {
                Taken::Passed(passed) => mark = passed,
                Taken::Filled(filled) if self.age.wait(&filled, now).is_zero() => {
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

        let done = page::check(self.context, &mut self.settled, &mut self.aside, page, due).await;
        if done {
            self.unsaved = Some(mark);
        }
        done
    }

    async fn save_if_due(&mut self) {
        if Instant::now() >= self.save_at {
            self.save().await;
        }
    }

    /// Saves what is not saved yet. After a failure the position stays unsaved, and the next save has it.
    async fn save(&mut self) {
        // When stopped, it saves all the same; after the lease it doesn't.
        if !self.context.held.lasts() {
            self.context.is_over();
            return;
        }
        let Some(mark) = self.unsaved.take() else {
            return;
        };
        self.save_at = Instant::now() + self.context.settings.busy_save_interval;
        match write(self.context, &mark).await {
            Ok(Saved::Done) => {
                self.pauses = Pauses::new();
                self.context.report.healed(SAVING);
                let cluster_time = mark.cluster_time;
                self.context.report.emit(RescueEvent::PositionSaved { cluster_time });
            }
            Ok(Saved::Fenced) => {
                self.context.step_back("another rescuer has saved a position, or somebody deleted it");
            }
            Err(error) => {
                self.save_at = Instant::now() + self.pauses.next();
                self.context.report.trouble(SAVING, &error);
                self.unsaved = Some(mark);
            }
        }
    }
}

/// Writes a position. A server that doesn't answer delays a stop only for a moment.
async fn write(context: &Context, mark: &Mark) -> Result<Saved, String> {
    let write = async {
        let now = context.clock.now().await?;
        context.positions.save(mark, context.held.epoch, now).await
    };
    let write = timeout(LONGEST_SAVE, write);
    match with_grace(&context.stop, context.settings.last_write(), write).await {
        Some(Ok(written)) => written.map_err(|error| classify::explain(&error, classify::of(&error))),
        Some(Err(_)) => Err(format!("MongoDB has not answered for {} s", LONGEST_SAVE.as_secs())),
        None => Err("MongoDB has not answered before the end".into()),
    }
}

const SAVING: &str = "save the position";
/// Above the time that the server has for the majority.
const LONGEST_SAVE: Duration = Duration::from_secs(15);
const LONGEST_NAP: Duration = Duration::from_secs(1);

enum Taken {
    Filled(Box<Filled>),
    Passed(Mark),
    Nothing,
    End,
}

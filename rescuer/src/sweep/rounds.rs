//! The sweep, which finds the messages that the change stream missed.
//!
//! Every `sweep_interval` the sweep goes through everything that is due in every watched collection: retries,
//! claims whose holder is gone, scheduled messages, messages whose commands were lost, delivered messages
//! whose removal from the outbox was rolled back, and all messages that the stream missed. The sweep runs
//! from the start, concurrently with the stream, and depends only on the documents.
//!
//! # A round
//! A round lists the collections, then reads [a page of each in turn](super::read). The round ends when every
//! collection was read to its end. It also ends once it has lasted `sweep_interval` and every collection has
//! had a turn: in the next round, a collection with a long backlog continues where it stopped, and the others
//! begin again. So the backlog of one collection doesn't delay the messages of another collection.
//!
//! A *full* round also reads entries without a date, which other programs may write. There is a full round
//! at the start, after a lost position, one delay after the start or the loss (for messages that were too young),
//! and every hour. The stream finds entries without a date promptly. If such entries were queued, ordinary rounds
//! read them again until they are done.
//!
//! # When a round is cut short
//! A round is cut short by an error, or by a broker that doesn't confirm. A document whose command
//! was not confirmed is then not remembered as queued, and the next round begins with the oldest
//! entry again. Collections are independent: those that were read to their end are done, and a full
//! round is repeated only for the others.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::internal::error_codes;
use mongodb::{Namespace, error::Error};
use tokio_util::sync::CancellationToken;

use super::{
    budget::{Budget, Turns},
    catalogue::Catalogue,
    collections::{self, Listing},
    facts::Holds,
    full_sweep::FullSweep,
    read::{CollectionReader, CollectionSweep, Count, ReadRequest, TurnEnd},
    scan::SLICES_A_ROUND,
    unwatchable,
};
use crate::{
    halt::{Halt, Interrupted, Run},
    leadership::term::Term,
    observe::event::RescueEvent,
    send::sender::Sender,
};

/// The minimum time that a round gives to long backlogs, however short the interval is.
const SHORTEST_ROUND: Duration = Duration::from_secs(1);

/// Reports of a failure use this text as the end of the sentence "could not …".
const LISTING: &str = "list collections for the sweep";

/// The server's error code for a cursor that the server has dropped, for example because documents waited for
/// room for too long.
const CURSOR_NOT_FOUND: i32 = 43;

/// Runs the rounds of the sweep, one after another, during one leadership term.
pub(crate) struct Rounds {
    term: Arc<Term>,
    sender: Arc<Sender>,
    catalogue: Arc<Catalogue>,
    full_sweep: Arc<FullSweep>,
    budget: Arc<Budget>,
    /// Cancelled when the first round has ended.
    swept: CancellationToken,
    reader: CollectionReader,
    last_full: Option<Instant>,
    /// The number of full rounds that were requested.
    wanted_full: u64,
    /// The collections that still have to be read fully, each with the number of the full round that
    /// requires it.
    undone: HashMap<Namespace, u64>,
    /// The collections that the last round left unfinished.
    under_way: HashMap<Namespace, CollectionSweep>,
    /// For each collection with entries without a date, the time when they were last read, or were first
    /// known to exist.
    undated: HashMap<Namespace, Instant>,
    /// The collections that could not be read.
    failing: HashSet<Namespace>,
    /// The collections that still have to be searched for outboxes that the index doesn't cover.
    unchecked: HashSet<Namespace>,
    /// Whether the last round took longer than the interval between rounds.
    slow: bool,
}

/// What a round searches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Entries that are due.
    Due,
    /// Entries that are due, and entries without a date.
    Full,
}

/// The result of one round.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    collections: usize,
    turns: usize,
    count: Count,
    queries: usize,
    /// The number of collections that continue in the next round.
    unfinished: usize,
    /// Whether any unfinished collection can be read further without waiting for room.
    more: bool,
    cut_short: bool,
    /// Whether any collections couldn't be listed.
    unlisted: bool,
}

impl Rounds {
    pub(crate) fn new(
        term: Arc<Term>,
        sender: Arc<Sender>,
        catalogue: Arc<Catalogue>,
        full_sweep: Arc<FullSweep>,
        budget: Arc<Budget>,
        reader: CollectionReader,
        swept: CancellationToken,
    ) -> Self {
        Self {
            term,
            sender,
            catalogue,
            full_sweep,
            budget,
            swept,
            reader,
            last_full: None,
            wanted_full: 0,
            undone: HashMap::new(),
            under_way: HashMap::new(),
            undated: HashMap::new(),
            failing: HashSet::new(),
            unchecked: HashSet::new(),
            slow: false,
        }
    }

    /// Sweeps until a stop.
    pub(crate) async fn run(mut self) -> Run<()> {
        let settings = self.term.settings.clone();
        loop {
            // Without a broker, no document that the sweep finds could be queued.
            self.sender.ready().await?;
            self.term.check()?;

            let is_hourly = match self.last_full {
                Some(last) => last.elapsed() >= settings.full_sweep_interval,
                None => true,
            };
            let wanted = if self.full_sweep.take() || is_hourly { Extent::Full } else { Extent::Due };
            // An unfinished full round continues in the following rounds.
            let swept = if self.undone.is_empty() { wanted } else { Extent::Full };
            let begun = Instant::now();
            let tally = self.round(wanted).await;
            if wanted == Extent::Full && tally.unlisted {
                self.full_sweep.postpone();
            } else if wanted == Extent::Full {
                self.last_full = Some(Instant::now());
            }

            let took = begun.elapsed();
            self.warn_when_slow(took);
            self.report(tally, swept, took);
            self.swept.cancel();

            let rest = settings.sweep_interval.saturating_sub(took);
            let pause = if tally.more { Duration::ZERO } else { rest };
            pause_or_wish(&self.term, &self.full_sweep, pause).await;
        }
    }

    fn warn_when_slow(&mut self, took: Duration) {
        let slow = took > self.term.settings.sweep_interval.max(SHORTEST_ROUND);
        if slow && !self.slow {
            tracing::warn!(
                ?took,
                "a round of the sweep took longer than sweep_interval; a collection has a long backlog or \
                 lacks its index, or sweep_queries_per_second is too low for the number of collections"
            );
        }
        self.slow = slow;
    }

    fn report(&self, tally: Tally, swept: Extent, took: Duration) {
        let full = swept == Extent::Full;
        let Tally { collections, queries, unfinished, cut_short, .. } = tally;
        let Count { examined, queued } = tally.count;
        tracing::debug!(full, collections, examined, queued, queries, unfinished, cut_short, "swept");
        self.term.report.emit(RescueEvent::SweepDone {
            full,
            collections,
            examined,
            queued,
            queries,
            unfinished,
            cut_short,
            took,
        });
    }

    async fn round(&mut self, wanted: Extent) -> Tally {
        let (term, budget) = (self.term.clone(), self.budget.clone());
        let mut turns = Turns::sweeping(&term, &budget);
        let mut tally = Tally::default();

        match self.list(&mut turns, &mut tally).await {
            Ok(all) => {
                self.note_requests(wanted, &all);
                if self.read(all, &mut turns, &mut tally).await.is_err() {
                    tally.cut_short = true;
                }
            }
            Err(interrupted) => {
                if let Interrupted::Failed(error) = interrupted {
                    self.term.trouble(LISTING, &error);
                }
                tally.cut_short = true;
                tally.unlisted = true;
            }
        }
        tally.queries = turns.taken();
        tally
    }

    /// The collections to sweep. Reports patterns that match no watchable collection, and forgets
    /// collections that no longer exist.
    async fn list(
        &mut self,
        turns: &mut Turns<'_>,
        tally: &mut Tally,
    ) -> Result<Vec<Namespace>, Interrupted> {
        let listing = collections::list_all(&self.term, turns).await?;
        self.term.check()?;

        let all = listing.watched(&self.term.plan.coverage);
        let Listing { failed, .. } = &listing;
        if failed.is_empty() {
            self.term.report.healed(LISTING);
            self.keep_only(&all);
            unwatchable::report(&self.term, &listing, turns).await?;
            return Ok(all);
        }

        // The other databases are still swept.
        tally.cut_short = true;
        tally.unlisted = true;
        for (_, error) in failed {
            self.term.trouble(LISTING, error);
        }
        Ok(all)
    }

    /// Records which collections have to be read fully.
    fn note_requests(&mut self, wanted: Extent, all: &[Namespace]) {
        let owed = self.full_sweep.take_requested();
        if wanted == Extent::Full {
            self.want_full(all);
        } else if !owed.is_empty() {
            let owed: Vec<Namespace> = owed.into_iter().collect();
            self.want_full(&owed);
        }
    }

    fn want_full(&mut self, all: &[Namespace]) {
        self.wanted_full += 1;
        for namespace in all {
            if self.catalogue.holds(namespace) != Holds::Nothing {
                self.undone.insert(namespace.clone(), self.wanted_full);
            }
        }
    }

    /// Reads a page of each collection in turn, until all collections are done or time is up.
    async fn read(&mut self, all: Vec<Namespace>, turns: &mut Turns<'_>, tally: &mut Tally) -> Run<()> {
        let begun = Instant::now();
        let longest = self.term.settings.sweep_interval.max(SHORTEST_ROUND);
        let mut next = self.begin(all, tally);
        while let Some(mut sweep) = next.pop_front() {
            let wish = self.wish(&sweep.namespace);
            match self.reader.turn(&mut sweep, wish, turns, &mut tally.count).await {
                Ok(TurnEnd::More) => next.push_back(sweep),
                Ok(TurnEnd::NoRoom) => self.leave(sweep, tally),
                Ok(TurnEnd::Done) => self.finish(&sweep),
                // The round ends here, because the commands of the other collections would not be confirmed
                // either.
                Ok(TurnEnd::Unsent) => {
                    tally.cut_short = true;
                    return Ok(());
                }
                Err(Interrupted::Halted) => return Err(Halt),
                Err(Interrupted::Failed(error)) => self.fail(&sweep.namespace, &error, tally),
            }

            // Once the first collection is next again, every collection has had a turn.
            tally.turns += 1;
            if tally.turns >= tally.collections && begun.elapsed() >= longest {
                break;
            }
        }

        tally.more = !next.is_empty();
        for sweep in next {
            self.leave(sweep, tally);
        }
        Ok(())
    }

    /// The progress of each collection that has or may have outboxes, continued from the last round.
    fn begin(&mut self, all: Vec<Namespace>, tally: &mut Tally) -> VecDeque<CollectionSweep> {
        let mut sweeps = VecDeque::new();
        for namespace in all {
            if self.catalogue.holds(&namespace) == Holds::Nothing {
                continue;
            }
            let left = self.under_way.remove(&namespace);
            sweeps.push_back(left.unwrap_or_else(|| CollectionSweep::new(namespace)));
        }
        tally.collections = sweeps.len();
        sweeps
    }

    fn wish(&mut self, namespace: &Namespace) -> ReadRequest {
        let waits = self.sender.queued().undated(namespace).is_some();
        let undated = if waits {
            // Before the pause is over, all documents that were queued for an entry without a date
            // would have to wait anyway.
            let since = self.undated.entry(namespace.clone()).or_insert_with(Instant::now);
            since.elapsed() >= self.term.settings.requeue_pause
        } else {
            false
        };

        ReadRequest {
            full: self.undone.get(namespace).copied(),
            undated,
            flaws: if self.unchecked.contains(namespace) { SLICES_A_ROUND } else { 0 },
        }
    }

    /// Keeps the progress of a collection for the next round.
    fn leave(&mut self, sweep: CollectionSweep, tally: &mut Tally) {
        tally.unfinished += 1;
        self.under_way.insert(sweep.namespace.clone(), sweep);
    }

    /// Records that a collection was read to its end.
    fn finish(&mut self, sweep: &CollectionSweep) {
        let namespace = &sweep.namespace;
        if self.failing.remove(namespace) {
            self.term.report.healed(&sweeping(namespace));
        }
        if sweep.read_flaws {
            self.unchecked.remove(namespace);
        }
        if sweep.read_undated {
            self.undated.remove(namespace);
        }

        if sweep.fulfilled.is_some() && sweep.fulfilled == self.undone.get(namespace).copied() {
            self.undone.remove(namespace);
            if sweep.read_undated {
                self.unchecked.insert(namespace.clone());
            }
        }
        if self.catalogue.holds(namespace) == Holds::Nothing {
            self.undone.remove(namespace);
        }
    }

    /// Records that a collection can't be read. The other collections are still read, and the next round
    /// tries to read this collection again.
    fn fail(&mut self, namespace: &Namespace, error: &Error, tally: &mut Tally) {
        if error_codes::code(error) == Some(CURSOR_NOT_FOUND) {
            tally.unfinished += 1;
            return;
        }
        self.catalogue.forget_indexes(namespace);
        tally.cut_short = true;
        self.failing.insert(namespace.clone());
        self.term.trouble(&sweeping(namespace), error);
    }

    /// Forgets collections that no longer exist.
    fn keep_only(&mut self, all: &[Namespace]) {
        self.sender.queued().keep_only(all);
        self.catalogue.keep_only(all);
        self.reader.keep_only(all);

        let there: HashSet<&Namespace> = all.iter().collect();
        self.undone.retain(|namespace, _| there.contains(namespace));
        self.under_way.retain(|namespace, _| there.contains(namespace));
        self.undated.retain(|namespace, _| there.contains(namespace));
        self.unchecked.retain(|namespace| there.contains(namespace));
        for gone in self.failing.extract_if(|namespace| !there.contains(namespace)) {
            self.term.report.healed(&sweeping(&gone));
        }
    }
}

/// Waits for the next round, or until a full sweep is requested.
async fn pause_or_wish(term: &Term, full_sweep: &FullSweep, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = full_sweep.requested() => {}
        () = term.stop.cancelled() => {}
    }
}

fn sweeping(namespace: &Namespace) -> String {
    format!("sweep {namespace}")
}

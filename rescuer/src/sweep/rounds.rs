//! The sweep: the net under the change stream.
//!
//! Every `sweep_interval` it goes through everything that is due in every watched collection: retries, claims whose
//! holder is gone, scheduled messages, lost commands, clears that were rolled back, and all that the stream missed. It runs
//! from the first moment, beside the stream, and depends on nothing but the documents.
//!
//! # A round
//! lists the collections, then reads [a page of each in turn](crate::pass). It ends when each was read to its end, and at
//! the latest, when each has had a turn, after `sweep_interval`: a collection with a long backlog then continues where it
//! was, and the others are begun again. So no collection's backlog makes another's messages late.
//!
//! A *full* round also reads entries without a date (a foreign writer may leave it out): at the start, after a lost position,
//! once more a delay later (for what was too young then), and hourly. The stream is what finds them promptly; those that
//! were queued are read again by ordinary rounds until they are seen to be done.
//!
//! # When a round is cut short
//! By an error, or a broker that doesn't confirm: nothing is remembered as queued that wasn't, and the next round begins
//! from the oldest again. Each collection is read by itself: those that were read to their end are done, and of a full round
//! the others are made up for.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::internal::error_codes;
use mongodb::{Namespace, error::Error};

use crate::{
    classify,
    leadership::term::Context,
    observe::event::RescueEvent,
    sweep::catalogue::{self, Holds},
    sweep::collections::{self, Listing},
    sweep::read::{Count, Pass, Turn, Wish},
    sweep::scan::{SLICES_A_ROUND, Scans},
    sweep::unwatchable,
};

/// A round doesn't leave a long backlog sooner, however short the interval is.
const SHORTEST_ROUND: Duration = Duration::from_secs(1);

/// As it is reported when it fails: "could not …".
const LISTING: &str = "list collections for the sweep";

pub(crate) struct Sweep {
    context: Arc<Context>,
    scans: Scans,
    last_full: Option<Instant>,
    /// How many full rounds were wanted.
    full_rounds: u64,
    /// The collections whose part of a full round is still to be done, and of which.
    undone: HashMap<Namespace, u64>,
    /// Those that the last round left in the middle.
    under_way: HashMap<Namespace, Pass>,
    /// When entries without a date were last read, or were first known to wait.
    undated: HashMap<Namespace, Instant>,
    /// Those that could not be read.
    failing: HashSet<Namespace>,
    /// Where outboxes that the index doesn't hold are still to be looked for.
    unchecked: HashSet<Namespace>,
    /// Whether the last round took longer than the pause between two.
    slow: bool,
}

/// What one round amounted to.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    collections: usize,
    turns: usize,
    count: Count,
    /// How many collections continue in the next round.
    unfinished: usize,
    /// Some of them needn't wait for room.
    more: bool,
    cut_short: bool,
    /// Some collections couldn't be listed.
    unlisted: bool,
}

impl Sweep {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        Self {
            context: context.clone(),
            scans: Scans::default(),
            last_full: None,
            full_rounds: 0,
            undone: HashMap::new(),
            under_way: HashMap::new(),
            undated: HashMap::new(),
            failing: HashSet::new(),
            unchecked: HashSet::new(),
            slow: false,
        }
    }

    /// Sweeps until told to stop.
    pub(crate) async fn run(mut self) {
        let (context, settings) = (self.context.clone(), self.context.settings.clone());
        loop {
            // Without a broker every find would be in vain.
            context.stop.run_until_cancelled(context.commands.ready()).await;
            if context.is_over() {
                return;
            }

            let hourly = self.last_full.is_none_or(|last| last.elapsed() >= settings.full_sweep_interval);
            let wanted = context.full_sweep.take() || hourly;
            let begun = Instant::now();
            let full = wanted || !self.undone.is_empty();
            let tally = self.round(wanted).await;
            match (wanted, tally.unlisted) {
                (true, true) => context.full_sweep.postpone(),
                (true, false) => self.last_full = Some(Instant::now()),
                (false, _) => {}
            }

            let took = begun.elapsed();
            self.warn_when_slow(took);
            let Tally { collections, count, unfinished, cut_short, .. } = tally;
            let Count { examined, queued, queries } = count;
            tracing::debug!(full, collections, examined, queued, queries, unfinished, cut_short, "swept");
            context.report.emit(RescueEvent::SweepDone {
                full,
                collections,
                examined,
                queued,
                queries,
                unfinished,
                cut_short,
                took,
            });
            context.swept.cancel();

            let pause =
                if tally.more { Duration::ZERO } else { settings.sweep_interval.saturating_sub(took) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = context.full_sweep.requested() => {}
                () = context.stop.cancelled() => {}
            }
        }
    }

    fn warn_when_slow(&mut self, took: Duration) {
        let slow = took > self.context.settings.sweep_interval.max(SHORTEST_ROUND);
        if slow && !std::mem::replace(&mut self.slow, slow) {
            tracing::warn!(
                ?took,
                "a round of the sweep takes longer than sweep_interval: a collection has a long backlog or lacks its index, or \
                 there are more collections than sweep_queries_per_second allows for"
            );
        }
        self.slow = slow;
    }

    async fn round(&mut self, full: bool) -> Tally {
        let context = self.context.clone();
        let begun = Instant::now();
        let mut tally = Tally::default();

        let listing = collections::list_all(&context, &mut tally.count.turns()).await;
        let listing = match listing {
            Ok(listing) => listing,
            Err(error) => {
                self.trouble(LISTING, &error);
                (tally.cut_short, tally.unlisted) = (true, true);
                return tally;
            }
        };
        let all = self.take_up(listing, &mut tally).await;
        let owed = context.full_sweep.take_owed();
        if full {
            self.want_full(&all);
        } else if !owed.is_empty() {
            let owed: Vec<Namespace> = owed.into_iter().collect();
            self.want_full(&owed);
        }

        let longest = context.settings.sweep_interval.max(SHORTEST_ROUND);
        let mut next: VecDeque<Pass> = self.begin(all, &mut tally);
        while let Some(mut pass) = next.pop_front() {
            let wish = self.wish(&pass.namespace);
            match pass.turn(&context, &mut self.scans, wish, &mut tally.count).await {
                Ok(Turn::More) => next.push_back(pass),
                Ok(Turn::NoRoom) => self.leave(pass, &mut tally),
                Ok(Turn::Done) => self.finish(&pass),
                // The others would find nobody to send to either.
                Ok(Turn::Stopped) => {
                    tally.cut_short = true;
                    return tally;
                }
                Err(error) => self.fail(&pass.namespace, &error, &mut tally),
            }
            // Every collection has had a turn once the first ones come by again.
            tally.turns += 1;
            if tally.turns >= tally.collections && begun.elapsed() >= longest {
                break;
            }
        }
        tally.more = !next.is_empty();
        for pass in next {
            self.leave(pass, &mut tally);
        }
        tally
    }

    /// The collections that were listed. Reports what can't be watched, and forgets what is gone.
    async fn take_up(&mut self, listing: Listing, tally: &mut Tally) -> Vec<Namespace> {
        let context = self.context.clone();
        let all = listing.watched(&context.plan.coverage);
        if listing.failed.is_empty() && !context.is_over() {
            context.report.healed(LISTING);
            self.keep_only(&all);
            unwatchable::report(&context, &listing, &mut tally.count.turns()).await;
            return all;
        }
        (tally.cut_short, tally.unlisted) = (true, true);
        for (_, error) in listing.failed {
            self.trouble(LISTING, &error);
        }
        all
    }

    fn want_full(&mut self, all: &[Namespace]) {
        self.full_rounds += 1;
        for namespace in all {
            if self.context.catalogue().holds(namespace) != Holds::Nothing {
                self.undone.insert(namespace.clone(), self.full_rounds);
            }
        }
    }

    /// One pass for each collection that has or may have outboxes.
    fn begin(&mut self, all: Vec<Namespace>, tally: &mut Tally) -> VecDeque<Pass> {
        let mut passes = VecDeque::new();
        for namespace in all {
            if self.context.catalogue().holds(&namespace) == Holds::Nothing {
                continue;
            }
            let pass = self.under_way.remove(&namespace).unwrap_or_else(|| Pass::new(namespace));
            passes.push_back(pass);
        }
        tally.collections = passes.len();
        passes
    }

    fn wish(&mut self, namespace: &Namespace) -> Wish {
        let waits = self.context.queued().undated(namespace).is_some();
        let since = if waits {
            Some(*self.undated.entry(namespace.clone()).or_insert_with(Instant::now))
        } else {
            None
        };
        let pause = self.context.settings.requeue_pause;
        Wish {
            full: self.undone.get(namespace).copied(),
            // Within the pause, all of them would be found to wait.
            undated: since.is_some_and(|since| since.elapsed() >= pause),
            flaws: if self.unchecked.contains(namespace) { SLICES_A_ROUND } else { 0 },
        }
    }

    /// A collection continues in the next round.
    fn leave(&mut self, pass: Pass, tally: &mut Tally) {
        tally.unfinished += 1;
        self.under_way.insert(pass.namespace.clone(), pass);
    }

    /// A collection was read to its end.
    fn finish(&mut self, pass: &Pass) {
        let namespace = &pass.namespace;
        if self.failing.remove(namespace) {
            self.context.report.healed(&sweeping(namespace));
        }
        if pass.read_flaws {
            self.unchecked.remove(namespace);
        }
        if pass.read_undated {
            self.undated.remove(namespace);
        }
        if pass.fulfilled.is_some() && pass.fulfilled == self.undone.get(namespace).copied() {
            self.undone.remove(namespace);
            if pass.read_undated {
                self.unchecked.insert(namespace.clone());
            }
        }
        if self.context.catalogue().holds(namespace) == Holds::Nothing {
            self.undone.remove(namespace);
        }
    }

    /// A collection can't be read: the others are, and the next round tries again.
    fn fail(&mut self, namespace: &Namespace, error: &Error, tally: &mut Tally) {
        /// It waited for room for longer than the server keeps a cursor.
        const CURSOR_NOT_FOUND: i32 = 43;
        if error_codes::code(error) == Some(CURSOR_NOT_FOUND) {
            tally.unfinished += 1;
            return;
        }
        self.context.catalogue().forget_indexes(namespace);
        tally.cut_short = true;
        self.failing.insert(namespace.clone());
        self.trouble(&sweeping(namespace), error);
    }

    /// The next round tries again.
    fn trouble(&self, part: &str, error: &Error) {
        self.context.report.trouble(part, &classify::explain(error, classify::of(error)));
    }

    /// Forgets collections that are gone.
    fn keep_only(&mut self, all: &[Namespace]) {
        self.context.queued().keep_only(all);
        catalogue::keep_only(&self.context, all);
        self.scans.keep_only(all);
        let there: HashSet<&Namespace> = all.iter().collect();
        self.undone.retain(|namespace, _| there.contains(namespace));
        self.under_way.retain(|namespace, _| there.contains(namespace));
        self.undated.retain(|namespace, _| there.contains(namespace));
        self.unchecked.retain(|namespace| there.contains(namespace));
        for gone in self.failing.extract_if(|namespace| !there.contains(namespace)) {
            self.context.report.healed(&sweeping(&gone));
        }
    }
}

fn sweeping(namespace: &Namespace) -> String {
    format!("sweep {namespace}")
}

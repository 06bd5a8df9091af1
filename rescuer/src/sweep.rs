//! The sweep: the net under the change stream.
//!
//! Every `sweep_interval` it goes through everything that is due in every watched collection: retries, claims whose
//! holder is gone, scheduled messages, lost commands, clears that were rolled back, and all that the stream missed. It runs
//! from the first moment, beside the stream, and depends on nothing but the documents.
//!
//! # How a collection is read
//! By the partial index on `outbox.available_at`, in its order, with one cursor from the oldest to now:
//!
//! - *No sort.* The index is multikey, and a sort by an array's field reads the whole range before the first page.
//! - *No page by page with a lower bound.* Thousands of entries can share one millisecond (a transaction, a bulk
//!   schedule); a bound behind it would skip those, a bound on it would read them for ever. A cursor's place in the index
//!   is exact, costs the server the same, and survives what is delivered or claimed meanwhile.
//! - The cursor fetches `page_size` documents at a time and each fetch waits for its turn in the budget of queries.
//! - `$elemMatch`, since conditions on the bare path may be met by two different elements.
//!
//! Entries without a date (a foreign writer may leave it out) stand at the index's null, with all dead ones. They are read
//! in a *full* round only: at the start, after a lost position, once more a delay later (what was too young then), and
//! hourly. The stream is what finds them promptly.
//!
//! # When a round is cut short
//! By an error, or a broker that doesn't confirm: nothing is remembered as queued that wasn't, and the next round begins
//! from the oldest again. Each collection goes by itself: those that were read to their end are done, and of a full round
//! the others are made up for.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::command::Reason;
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, RawDocument, doc},
    error::Error,
    options::{FindOptions, Hint},
};

use crate::{
    RescuerError,
    commands::{Wanted, send},
    context::Context,
    event::RescueEvent,
    fault::{self, Fault},
    index::{Index, Indexes, is_refused_hint},
    look::{look, projection},
    queued::Admission,
    scan::Scans,
    targets,
    verdict::Moment,
};

/// No query keeps the server busy for longer.
pub(crate) const LONGEST_QUERY: Duration = Duration::from_secs(300);

pub(crate) struct Sweep {
    pub(crate) context: Arc<Context>,
    indexes: Indexes,
    scans: Scans,
    last_full: Option<Instant>,
    /// The collections whose part of a full round is still to be done.
    undone: HashSet<Namespace>,
    /// Whether the last round took longer than the pause between two.
    slow: bool,
}

/// What one round came to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) collections: usize,
    pub(crate) examined: usize,
    pub(crate) queued: usize,
    /// Turns of the budget.
    pub(crate) queries: usize,
    pub(crate) cut_short: bool,
    /// Some collections couldn't be listed.
    unlisted: bool,
}

/// Whether to go on reading a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    GoOn,
    /// There is nobody to send to.
    Enough,
}

impl Sweep {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        Self {
            context: context.clone(),
            indexes: Indexes::default(),
            scans: Scans::default(),
            last_full: None,
            undone: HashSet::new(),
            slow: false,
        }
    }

    /// Sweeps until told to stop.
    pub(crate) async fn run(mut self) -> Result<(), RescuerError> {
        let (context, settings) = (self.context.clone(), self.context.settings.clone());
        loop {
            // Without a broker every find would be in vain.
            context.stop.run_until_cancelled(context.commands.ready()).await;
            if context.is_over() {
                return Ok(());
            }
            let hourly = self.last_full.is_none_or(|last| last.elapsed() >= settings.full_sweep_interval);
            let wanted = context.full_sweep.take() || hourly;
            let begun = Instant::now();
            let full = wanted || !self.undone.is_empty();
            let tally = self.round(wanted).await?;
            match (wanted, tally.unlisted) {
                (true, true) => context.full_sweep.postpone(),
                (true, false) => self.last_full = Some(Instant::now()),
                (false, _) => {}
            }
            let took = begun.elapsed();
            self.say_when_slow(took);
            let Tally { collections, examined, queued, queries, cut_short, .. } = tally;
            tracing::debug!(full, collections, examined, queued, queries, cut_short, "swept");
            let done =
                RescueEvent::SweepDone { full, collections, examined, queued, queries, cut_short, took };
            context.report.emit(done);
            tokio::select! {
                () = tokio::time::sleep(settings.sweep_interval) => {}
                () = context.full_sweep.requested() => {}
                () = context.stop.cancelled() => {}
            }
        }
    }

    fn say_when_slow(&mut self, took: Duration) {
        let slow = took > self.context.settings.sweep_interval;
        if slow && !std::mem::replace(&mut self.slow, slow) {
            tracing::warn!(
                ?took,
                "a round of the sweep takes longer than sweep_interval; raise sweep_queries_per_second, or look whether \
                 every collection has its index"
            );
        }
        self.slow = slow;
    }

    async fn round(&mut self, full: bool) -> Result<Tally, RescuerError> {
        let context = self.context.clone();
        let mut tally = Tally::default();
        context.queued().begin_round();
        let mut all = Vec::new();
        if targets::asks(&context.plan.coverage) {
            self.turn(&mut tally).await;
        }
        let databases = match targets::databases(&context).await {
            Ok(databases) => databases,
            Err(error) => {
                self.survivable("list databases for the sweep", error)?;
                (tally.cut_short, tally.unlisted) = (true, true);
                return Ok(tally);
            }
        };
        for database in databases {
            if context.is_over() {
                (tally.cut_short, tally.unlisted) = (true, true);
                return Ok(tally);
            }
            self.turn(&mut tally).await;
            match targets::list(&context, &database).await {
                Ok(found) => all.extend(found),
                Err(error) => {
                    self.survivable("list collections for the sweep", error)?;
                    (tally.cut_short, tally.unlisted) = (true, true);
                }
            }
        }
        if full {
            self.undone.extend(all.iter().cloned());
        }
        self.undone.extend(context.full_sweep.take_owed());
        if !tally.unlisted {
            self.keep_only(&all);
        }
        let mut swept = HashMap::new();
        for namespace in &all {
            if context.is_over() {
                tally.cut_short = true;
                return Ok(tally);
            }
            match self.collection(namespace, &mut tally).await {
                Ok(index) => drop(swept.insert(namespace.clone(), index)),
                Err(error) => {
                    self.indexes.forget(namespace);
                    self.survivable("sweep a collection", error)?;
                    tally.cut_short = true;
                }
            }
        }
        if !tally.cut_short {
            context.set_collections(swept);
        }
        Ok(tally)
    }

    /// Waits for the next query's turn.
    pub(crate) async fn turn(&self, tally: &mut Tally) {
        tally.queries += 1;
        self.context.stop.run_until_cancelled(self.context.budget.turn()).await;
        self.context.report.sweep_moved();
    }

    /// Whether the next round may succeed.
    fn survivable(&self, doing: &'static str, source: Error) -> Result<(), RescuerError> {
        if let Fault::Fatal(advice) = fault::of(&source) {
            return Err(RescuerError::Refused { doing, advice, source });
        }
        tracing::warn!(error = fault::text(&source), "could not {doing}; the next round tries again");
        self.context.report.error(&format!("could not {doing}: {}", fault::text(&source)));
        Ok(())
    }

    /// Forgets collections that are gone.
    fn keep_only(&mut self, all: &[Namespace]) {
        self.context.queued().keep_only(all);
        self.indexes.keep_only(all);
        self.scans.keep_only(all);
        self.undone.retain(|namespace| all.contains(namespace));
    }

    async fn collection(&mut self, namespace: &Namespace, tally: &mut Tally) -> Result<Option<Index>, Error> {
        let context = self.context.clone();
        tally.collections += 1;
        if !self.indexes.knows(namespace) {
            self.turn(tally).await;
        }
        let mut index = self.indexes.find(&context, namespace).await?;
        let reading = match &index {
            Some(by) => match self.by_index(namespace, by, tally).await {
                Err(error) if is_refused_hint(&error) => {
                    self.indexes.miss(&context, namespace);
                    index = None;
                    self.scan(namespace, tally).await?
                }
                read => read?,
            },
            None => self.scan(namespace, tally).await?,
        };
        match reading {
            Reading::GoOn => {
                context.queued().end_round(namespace, Instant::now());
                if !self.scans.is_under_way(namespace) {
                    self.undone.remove(namespace);
                }
            }
            Reading::Enough => tally.cut_short = true,
        }
        Ok(index)
    }

    async fn by_index(
        &mut self,
        namespace: &Namespace,
        index: &Index,
        tally: &mut Tally,
    ) -> Result<Reading, Error> {
        let now = self.context.clock.now().await?;
        let due = self.range(namespace, due_by(now), index, tally).await?;
        if due == Reading::Enough || !self.undone.contains(namespace) {
            return Ok(due);
        }
        match index.partial {
            true => self.range(namespace, undated(), index, tally).await,
            // The range would be nearly the whole collection, all in one.
            false => self.scan(namespace, tally).await,
        }
    }

    async fn scan(&mut self, namespace: &Namespace, tally: &mut Tally) -> Result<Reading, Error> {
        let mut scans = std::mem::take(&mut self.scans);
        let scanned = scans.go_on(self, namespace, tally).await;
        self.scans = scans;
        scanned
    }

    /// Reads a range of the index to its end.
    async fn range(
        &mut self,
        namespace: &Namespace,
        filter: Document,
        index: &Index,
        tally: &mut Tally,
    ) -> Result<Reading, Error> {
        let options = FindOptions::builder().hint(Hint::Name(index.name.clone())).build();
        self.read(namespace, filter, options, tally).await
    }

    /// Reads what a query finds, page by page, and queues what wants a command.
    pub(crate) async fn read(
        &mut self,
        namespace: &Namespace,
        filter: Document,
        mut options: FindOptions,
        tally: &mut Tally,
    ) -> Result<Reading, Error> {
        let context = self.context.clone();
        let page = context.settings.page_size;
        options.projection = Some(projection());
        options.batch_size = u32::try_from(page).ok();
        options.max_time = Some(LONGEST_QUERY);
        self.turn(tally).await;
        let collection = context.collection(namespace);
        let find = collection.find(filter).with_options(options);
        let Some(cursor) = context.stop.run_until_cancelled(find.into_future()).await else {
            return Ok(Reading::Enough);
        };
        let mut cursor = cursor?;
        loop {
            let moment = Moment::sweeping(context.clock.now().await?, context.plan.delay);
            let (mut wanted, mut read) = (Vec::new(), 0);
            while read < page {
                // A stop needn't wait for what the server is still looking for.
                let Some(more) = context.stop.run_until_cancelled(cursor.advance()).await else {
                    return Ok(Reading::Enough);
                };
                if !more? {
                    break;
                }
                read += 1;
                wanted.extend(self.admit(namespace, cursor.current(), moment));
            }
            tally.examined += read;
            let sent = send(&context, wanted, Reason::Sweep).await;
            tally.queued += sent.confirmed;
            if !sent.failed.is_empty() || context.is_over() {
                return Ok(Reading::Enough);
            }
            if read < page {
                return Ok(Reading::GoOn);
            }
            self.turn(tally).await;
        }
    }

    fn admit(&self, namespace: &Namespace, document: &RawDocument, moment: Moment) -> Option<Wanted> {
        let found = look(&self.context, namespace, document, moment)?;
        match self.context.queued().admit(&found.document, &found.head, Instant::now()) {
            Admission::Queue => Some(found),
            Admission::Wait | Admission::Full => None,
        }
    }
}

/// Documents with an entry whose date has come. The first condition is what lets the server use the partial index.
fn due_by(now: DateTime) -> Document {
    doc! { "outbox.id": { "$exists": true }, "outbox": { "$elemMatch": { "available_at": { "$lte": now } } } }
}

/// Documents with a living entry that has no date.
fn undated() -> Document {
    let entry = doc! { "available_at": Bson::Null, "dead_at": Bson::Null };
    doc! { "outbox.id": { "$exists": true }, "outbox": { "$elemMatch": entry } }
}

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
//! in a *full* round only: at the start, after a lost position, and hourly. The stream is what finds them promptly.
//!
//! # When a round is cut short
//! By an error, a broker that doesn't confirm, or a memory full of commands sent lately: nothing is remembered as queued
//! that wasn't, the next round begins from the oldest again, and a full round is asked for again.

use std::{sync::Arc, time::Instant};

use document_outbox::command::Reason;
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, RawDocument, doc},
    error::Error,
    options::{FindOptions, Hint},
};

use crate::{
    RescuerError,
    budget::Budget,
    commands::{Wanted, send},
    context::Context,
    event::RescueEvent,
    fault::{self, Fault},
    index::Indexes,
    look::{look, projection},
    queued::Admission,
    scan::Scans,
    targets,
    verdict::Moment,
};

pub(crate) struct Sweep {
    pub(crate) context: Arc<Context>,
    pub(crate) budget: Budget,
    indexes: Indexes,
    scans: Scans,
    last_full: Option<Instant>,
}

/// What one round came to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) collections: usize,
    pub(crate) examined: usize,
    pub(crate) queued: usize,
    pub(crate) cut_short: bool,
}

/// Whether to go on reading a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    GoOn,
    /// There is nobody to send to, or enough was sent.
    Enough,
}

impl Sweep {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        Self {
            budget: Budget::new(context.settings.sweep_queries_per_second),
            context: context.clone(),
            indexes: Indexes::default(),
            scans: Scans::default(),
            last_full: None,
        }
    }

    /// Sweeps until told to stop.
    pub(crate) async fn run(mut self) -> Result<(), RescuerError> {
        let (context, settings) = (self.context.clone(), self.context.settings.clone());
        loop {
            // Without a broker every find would be in vain.
            context.stop.run_until_cancelled(context.commands.ready()).await;
            if context.stop.is_cancelled() {
                return Ok(());
            }
            let hourly = self.last_full.is_none_or(|last| last.elapsed() >= settings.full_sweep_interval);
            let full = context.full_sweep.take() || hourly;
            let tally = self.round(full).await?;
            match (full, tally.cut_short) {
                (true, true) => context.full_sweep.postpone(),
                (true, false) => self.last_full = Some(Instant::now()),
                (false, _) => {}
            }
            let Tally { collections, examined, queued, cut_short } = tally;
            tracing::debug!(full, collections, examined, queued, cut_short, "swept");
            context.events.emit(RescueEvent::SweepDone { full, collections, examined, queued, cut_short });
            tokio::select! {
                () = tokio::time::sleep(settings.sweep_interval) => {}
                () = context.full_sweep.requested() => {}
                () = context.stop.cancelled() => {}
            }
        }
    }

    async fn round(&mut self, full: bool) -> Result<Tally, RescuerError> {
        let context = self.context.clone();
        let mut tally = Tally::default();
        context.queued().begin_round();
        let mut all = Vec::new();
        for database in targets::databases(&context.settings) {
            self.budget.turn().await;
            match targets::list(&context.client, &database, &context.settings).await {
                Ok(found) => all.extend(found),
                Err(error) => {
                    survivable("list collections for the sweep", error)?;
                    tally.cut_short = true;
                }
            }
        }
        for namespace in &all {
            if context.stop.is_cancelled() {
                tally.cut_short = true;
                return Ok(tally);
            }
            if let Err(error) = self.collection(namespace, full, &mut tally).await {
                self.indexes.forget(namespace);
                survivable("sweep a collection", error)?;
                tally.cut_short = true;
            }
        }
        if !tally.cut_short {
            context.queued().keep_only(&all);
            self.indexes.keep_only(&all);
            self.scans.keep_only(&all);
        }
        Ok(tally)
    }

    async fn collection(
        &mut self,
        namespace: &Namespace,
        full: bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let context = self.context.clone();
        tally.collections += 1;
        let now = context.clock.now().await?;
        self.budget.turn().await;
        let reading = match self.indexes.find(&context, namespace).await? {
            Some(index) => {
                let due = self.range(namespace, due_by(now), &index, tally).await?;
                match full && due == Reading::GoOn {
                    true => self.range(namespace, undated(), &index, tally).await?,
                    false => due,
                }
            }
            None => {
                let mut scans = std::mem::take(&mut self.scans);
                let scanned = scans.go_on(self, namespace, full, tally).await;
                self.scans = scans;
                scanned?
            }
        };
        match reading {
            Reading::GoOn => context.queued().end_round(namespace, Instant::now()),
            Reading::Enough => tally.cut_short = true,
        }
        Ok(())
    }

    /// Reads a range of the index to its end.
    async fn range(
        &mut self,
        namespace: &Namespace,
        filter: Document,
        index: &str,
        tally: &mut Tally,
    ) -> Result<Reading, Error> {
        let options = FindOptions::builder().hint(Hint::Name(index.to_owned())).build();
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
        self.budget.turn().await;
        let mut cursor = context.collection(namespace).find(filter).with_options(options).await?;
        loop {
            let moment = Moment::sweeping(context.clock.now().await?, context.settings.delay);
            let (mut wanted, mut read, mut reading) = (Vec::new(), 0, Reading::GoOn);
            while read < page && reading == Reading::GoOn && cursor.advance().await? {
                read += 1;
                reading = self.admit(namespace, cursor.current(), moment, &mut wanted);
            }
            tally.examined += read;
            let sent = send(&context, wanted, Reason::Sweep).await;
            tally.queued += sent.confirmed;
            if reading == Reading::Enough || !sent.failed.is_empty() || context.stop.is_cancelled() {
                return Ok(Reading::Enough);
            }
            if read < page {
                return Ok(Reading::GoOn);
            }
            self.budget.turn().await;
        }
    }

    fn admit(
        &self,
        namespace: &Namespace,
        document: &RawDocument,
        moment: Moment,
        wanted: &mut Vec<Wanted>,
    ) -> Reading {
        let Some(found) = look(&self.context, namespace, document, moment) else {
            return Reading::GoOn;
        };
        match self.context.queued().admit(&found.document, &found.head, Instant::now()) {
            Admission::Queue => wanted.push(found),
            Admission::Wait => {}
            Admission::Full => return Reading::Enough,
        }
        Reading::GoOn
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

/// Whether the next round may succeed.
fn survivable(doing: &'static str, source: Error) -> Result<(), RescuerError> {
    if let Fault::Fatal(advice) = fault::of(&source) {
        return Err(RescuerError::Refused { doing, advice, source });
    }
    tracing::warn!(error = fault::text(&source), "could not {doing}; the next round tries again");
    Ok(())
}

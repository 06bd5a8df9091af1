//! Reads one collection for the sweep from end to end, one page at a time.
//!
//! # How a collection is read
//! If the collection has the index, [one query](super::query) reads the entries that are due. In the index,
//! entries without a date have the value null, together with all dead entries. Entries without a date are
//! read in full rounds. After an entry without a date was queued, the other rounds also read such entries,
//! until all of them are known to be done. A collection without the index is [scanned](super::scan), and so
//! are outboxes that the index doesn't cover.
//!
//! # When there is no room to remember a document
//! The reader keeps its place in the collection and the documents that it found, and continues there as
//! soon as pauses end. So a backlog of any size is queued from beginning to end, instead of the beginning
//! being queued over and over.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use document_outbox::command::Reason;
use mongodb::{Namespace, error::Error};

use super::{
    budget::Turns,
    catalogue::Catalogue,
    facts::Holds,
    index::{Index, is_refused_hint},
    query::{OpenQuery, by, due_by, undated},
    scan::{LapState, SLICES_A_ROUND, Scan, Scans, Slice, SliceQuery},
};
use crate::{
    halt::Interrupted,
    judge::inspect::{Inspector, Wanted},
    leadership::term::Term,
    send::{
        recently_queued::{Admission, SweptEntries},
        sender::Sender,
    },
};

/// The progress of the sweep in one collection.
pub(crate) struct CollectionSweep {
    pub(crate) namespace: Namespace,
    step: Step,
    read: SweptEntries,
    open: Option<OpenQuery>,
    /// The number of the full round for which this collection has been read.
    pub(crate) fulfilled: Option<u64>,
    /// Whether the entries without a date were read to the end.
    pub(crate) read_undated: bool,
    /// Whether the search for outboxes that the index doesn't cover is finished.
    pub(crate) read_flaws: bool,
}

/// The next step in reading a collection.
enum Step {
    Begin,
    Due(Index),
    Undated { index: Index, wish: Option<u64>, noted: u64, found: bool },
    Slices { scan: Scan, left: usize, slice: Option<Slice> },
    End,
}

/// What a round has to read in a collection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadRequest {
    /// The number of the full round that still has to read this collection.
    pub(crate) full: Option<u64>,
    /// Whether entries without a date were queued and have to be read again.
    pub(crate) undated: bool,
    /// The maximum number of slices to search for outboxes that the index doesn't cover.
    pub(crate) flaws: usize,
}

/// The state of a collection after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnEnd {
    /// There is more to read.
    More,
    /// No document can be queued until a pause ends.
    NoRoom,
    /// The collection was read to its end.
    Done,
    /// The broker does not confirm commands.
    Unsent,
}

/// The state of a turn after one of its steps.
enum StepEnd {
    /// The turn continues with another step.
    Next,
    Turn(TurnEnd),
}

/// The result of opening the next query.
enum Opened {
    Query,
    /// The next step follows.
    NextStep,
    /// No document in the slice has an outbox.
    EmptySlice,
}

/// The state of a query after one of its pages.
enum PageEnd {
    More,
    Last,
    NoRoom,
    Unsent,
}

/// The numbers of documents read and queued.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) examined: usize,
    pub(crate) queued: usize,
}

impl CollectionSweep {
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            step: Step::Begin,
            read: SweptEntries::Dated,
            open: None,
            fulfilled: None,
            read_undated: false,
            read_flaws: false,
        }
    }

    /// Whether the error means that the server refuses to use the index.
    fn is_refused(&self, error: &Error) -> bool {
        is_refused_hint(error) && matches!(self.step, Step::Due(_))
    }

    /// Records that a page had an entry without a date.
    fn saw_undated(&mut self) {
        match &mut self.step {
            Step::Undated { found, .. } => *found = true,
            Step::Slices { slice: Some(slice), .. } => slice.undated = true,
            Step::Begin | Step::Due(_) | Step::Slices { .. } | Step::End => {}
        }
    }
}

/// Reads collections for the sweep of one leadership term.
pub(crate) struct CollectionReader {
    term: Arc<Term>,
    sender: Arc<Sender>,
    inspector: Arc<Inspector>,
    catalogue: Arc<Catalogue>,
    scans: Scans,
}

impl CollectionReader {
    pub(crate) fn new(
        term: Arc<Term>,
        sender: Arc<Sender>,
        inspector: Arc<Inspector>,
        catalogue: Arc<Catalogue>,
    ) -> Self {
        Self { term, sender, inspector, catalogue, scans: Scans::default() }
    }

    /// Forgets collections that no longer exist.
    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
        self.scans.keep_only(namespaces);
    }

    /// Reads one page of the collection.
    ///
    /// # Errors
    /// After an error the place in the collection is unusable; the collection is read again from the
    /// oldest entry.
    pub(crate) async fn turn(
        &mut self,
        sweep: &mut CollectionSweep,
        wish: ReadRequest,
        turns: &mut Turns<'_>,
        count: &mut Count,
    ) -> Result<TurnEnd, Interrupted> {
        loop {
            self.term.check()?;
            if matches!(sweep.step, Step::End) {
                self.end(sweep);
                return Ok(TurnEnd::Done);
            }

            match self.step(sweep, wish, turns, count).await {
                Ok(StepEnd::Next) => {}
                Ok(StepEnd::Turn(end)) => return Ok(end),
                Err(Interrupted::Failed(error)) if sweep.is_refused(&error) => self.scan_instead(sweep),
                Err(interrupted) => return Err(interrupted),
            }
        }
    }

    fn end(&self, sweep: &CollectionSweep) {
        // A scan reads a part of the collection in each round: only a whole lap, from one end of the
        // collection to the other, shows which documents are done.
        if !self.scans.is_under_way(Scan::Outboxes, &sweep.namespace) {
            self.sender.queued().end_sweep(&sweep.namespace, sweep.read, Instant::now());
        }
    }

    fn scan_instead(&self, sweep: &mut CollectionSweep) {
        self.catalogue.refuse_index(&sweep.namespace);
        sweep.open = None;
        sweep.step = slices(Scan::Outboxes, SLICES_A_ROUND);
    }

    async fn step(
        &mut self,
        sweep: &mut CollectionSweep,
        wish: ReadRequest,
        turns: &mut Turns<'_>,
        count: &mut Count,
    ) -> Result<StepEnd, Interrupted> {
        if sweep.open.is_none() {
            match self.open_next(sweep, wish, turns).await? {
                Opened::Query => {}
                Opened::NextStep => return Ok(StepEnd::Next),
                Opened::EmptySlice => return Ok(StepEnd::Turn(TurnEnd::More)),
            }
        }

        match self.page(sweep, turns, count).await? {
            PageEnd::More => Ok(StepEnd::Turn(TurnEnd::More)),
            PageEnd::NoRoom => Ok(StepEnd::Turn(TurnEnd::NoRoom)),
            PageEnd::Unsent => Ok(StepEnd::Turn(TurnEnd::Unsent)),
            PageEnd::Last => {
                sweep.open = None;
                self.finish_query(sweep, wish);
                // Reaching the end of the collection takes no separate turn.
                let is_over = matches!(sweep.step, Step::End);
                Ok(if is_over { StepEnd::Next } else { StepEnd::Turn(TurnEnd::More) })
            }
        }
    }

    /// Opens the next query.
    async fn open_next(
        &mut self,
        sweep: &mut CollectionSweep,
        wish: ReadRequest,
        turns: &mut Turns<'_>,
    ) -> Result<Opened, Interrupted> {
        let (filter, options) = match &mut sweep.step {
            Step::Begin => {
                sweep.step = self.begin(&sweep.namespace, turns).await?;
                return Ok(Opened::NextStep);
            }
            Step::Due(index) => (due_by(self.term.mongo.now().await?), by(index)),
            Step::Undated { index, .. } => (undated(), by(index)),
            Step::Slices { scan, slice, .. } => {
                // A lap that begins now covers all entries that have been queued until now.
                let of = (*scan, &sweep.namespace);
                let noted = self.sender.queued().undated(&sweep.namespace).unwrap_or_default();
                let lap = (wish.full, noted);
                let (next, query) = self.scans.next(&self.term, &self.catalogue, of, lap, turns).await?;
                *slice = Some(next);
                match query {
                    SliceQuery::Find(filter, options) => (filter, *options),
                    SliceQuery::Empty => {
                        self.finish_query(sweep, wish);
                        return Ok(Opened::EmptySlice);
                    }
                }
            }
            Step::End => return Ok(Opened::NextStep),
        };

        let open = OpenQuery::open(&self.term, &sweep.namespace, filter, options, turns).await?;
        sweep.open = Some(open);
        Ok(Opened::Query)
    }

    /// The first step, which uses the index if there is one.
    async fn begin(&self, namespace: &Namespace, turns: &mut Turns<'_>) -> Result<Step, Interrupted> {
        self.catalogue.learn(namespace, turns).await?;
        if !self.scans.is_under_way(Scan::Outboxes, namespace) {
            self.sender.queued().begin_sweep(namespace);
        }

        if let Some(index) = self.catalogue.index(namespace) {
            return Ok(Step::Due(index));
        }
        if self.catalogue.holds(namespace) == Holds::Nothing {
            return Ok(Step::End);
        }
        Ok(slices(Scan::Outboxes, SLICES_A_ROUND))
    }

    /// Decides the next step after a query was read to its end.
    fn finish_query(&mut self, sweep: &mut CollectionSweep, wish: ReadRequest) {
        let step = std::mem::replace(&mut sweep.step, Step::End);
        sweep.step = match step {
            Step::Due(index) => self.after_due(sweep, index, wish),
            Step::Undated { wish, noted, found, .. } => {
                sweep.fulfilled = wish;
                sweep.read_undated = true;
                if !found {
                    self.sender.queued().none_undated(&sweep.namespace, noted);
                }
                Step::End
            }
            Step::Slices { scan, left, slice: Some(slice) } => self.after_slice(sweep, scan, left, slice),
            Step::Begin | Step::Slices { .. } | Step::End => Step::End,
        };
    }

    /// Decides the next step after the due entries were read.
    fn after_due(&self, sweep: &mut CollectionSweep, index: Index, wish: ReadRequest) -> Step {
        if wish.full.is_none() && !wish.undated {
            if wish.flaws == 0 {
                return Step::End;
            }
            sweep.read_flaws = true;
            return slices(Scan::Flaws, wish.flaws);
        }

        // In an index of all documents, the range without a date would be nearly the whole collection.
        if !index.partial {
            return slices(Scan::Outboxes, SLICES_A_ROUND);
        }
        sweep.read = SweptEntries::All;
        let noted = self.sender.queued().undated(&sweep.namespace).unwrap_or_default();
        Step::Undated { index, wish: wish.full, noted, found: false }
    }

    /// Records that a slice was read.
    fn after_slice(&mut self, sweep: &mut CollectionSweep, scan: Scan, left: usize, slice: Slice) -> Step {
        let lap = match self.scans.read(scan, &sweep.namespace, slice) {
            LapState::UnderWay if left > 1 => return slices(scan, left - 1),
            LapState::UnderWay => return Step::End,
            LapState::Ended(lap) => lap,
        };

        if scan == Scan::Outboxes {
            self.catalogue.found_none(&sweep.namespace);
            sweep.read = SweptEntries::All;
            sweep.fulfilled = lap.wish;
            if !lap.undated {
                self.sender.queued().none_undated(&sweep.namespace, lap.noted);
            }
        }
        Step::End
    }

    /// Queues the documents that wait for room, or the documents of the open query's next page.
    async fn page(
        &self,
        sweep: &mut CollectionSweep,
        turns: &mut Turns<'_>,
        count: &mut Count,
    ) -> Result<PageEnd, Interrupted> {
        let Some(mut open) = sweep.open.take() else {
            return Ok(PageEnd::Last);
        };
        let end = self.page_of(&mut open, sweep, turns, count).await?;
        sweep.open = Some(open);
        Ok(end)
    }

    async fn page_of(
        &self,
        open: &mut OpenQuery,
        sweep: &mut CollectionSweep,
        turns: &mut Turns<'_>,
        count: &mut Count,
    ) -> Result<PageEnd, Interrupted> {
        // Documents of an earlier page come first, because they have waited for room.
        if open.waiting.is_empty() {
            if open.ended {
                return Ok(PageEnd::Last);
            }
            let (inspector, catalogue) = (&self.inspector, &self.catalogue);
            let found = open.read_page(&self.term, &sweep.namespace, inspector, catalogue, turns).await?;
            count.examined += found.examined;
            if found.undated {
                sweep.saw_undated();
            }
            open.waiting = found.wanted.into();
        }

        let wanted = self.admit(&mut open.waiting);
        if wanted.is_empty() && !open.waiting.is_empty() {
            return Ok(PageEnd::NoRoom);
        }

        let sent = self.sender.send(wanted, Reason::Sweep).await?;
        count.queued += sent.confirmed;
        if !sent.failed.is_empty() {
            return Ok(PageEnd::Unsent);
        }
        self.term.check()?;

        if !open.waiting.is_empty() {
            Ok(PageEnd::NoRoom)
        } else if open.ended {
            Ok(PageEnd::Last)
        } else {
            Ok(PageEnd::More)
        }
    }

    /// Takes the documents for which there is room. They are taken in order, so that no document overtakes
    /// another.
    fn admit(&self, waiting: &mut VecDeque<Wanted>) -> Vec<Wanted> {
        let now = Instant::now();
        let mut wanted = Vec::new();
        while let Some(next) = waiting.pop_front() {
            match self.sender.queued().admit(&next.document, &next.head, now) {
                Admission::Queue => wanted.push(next),
                Admission::Wait => {}
                Admission::Full => {
                    waiting.push_front(next);
                    break;
                }
            }
        }
        wanted
    }
}

fn slices(scan: Scan, left: usize) -> Step {
    Step::Slices { scan, left, slice: None }
}

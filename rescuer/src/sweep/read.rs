//! One collection's part in the sweep: read from one end to the other, a page a turn.
//!
//! # How a collection is read
//! By the partial index on `outbox.available_at`, in its order, with one cursor from the oldest to now:
//!
//! - *No sort.* The index is multikey, and a sort by an array's field reads the whole range before the first page.
//! - *No page by page with a lower bound.* Thousands of entries can share one millisecond (a transaction, a bulk
//!   schedule); a bound behind it would skip those, a bound on it would read them for ever. A cursor's place in the index
//!   is exact, costs the server the same, and survives what is delivered or claimed meanwhile.
//! - `$elemMatch`, since conditions on the bare path may be met by two different elements.
//!
//! Entries without a date are at the index's null, with all dead ones. They are read where a full round wants them, and
//! where one was queued and not seen to be done since. Without the index, and for what an index doesn't hold, the
//! collection is [scanned](crate::scan).
//!
//! # When there is no room to remember a document
//! The pass keeps what it found and its place, and continues there as soon as pauses end. So a backlog of any size is
//! queued from its beginning to its end, and not its beginning again and again.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use document_outbox::command::Reason;
use mongodb::{
    Cursor, Namespace,
    bson::{Bson, DateTime, Document, RawDocumentBuf, doc},
    error::Error,
    options::{FindOptions, Hint},
};

use crate::{
    judge::inspect::{look, projection},
    judge::verdict::Moment,
    leadership::term::Context,
    send::commands::{Wanted, send},
    send::recently_queued::{Admission, Read},
    sweep::budget::Turns,
    sweep::catalogue::{self, Holds},
    sweep::index::{Index, is_refused_hint},
    sweep::scan::{SLICES_A_ROUND, Scan, Scans, Slice},
};

/// No query keeps the server busy for longer.
pub(crate) const LONGEST_QUERY: Duration = Duration::from_secs(300);

/// One collection on its way.
pub(crate) struct Pass {
    pub(crate) namespace: Namespace,
    step: Step,
    /// Entries without a date were read, too.
    read: Read,
    open: Option<Open>,
    /// What was fulfilled of full rounds.
    pub(crate) fulfilled: Option<u64>,
    /// The entries without a date were read to their end.
    pub(crate) read_undated: bool,
    /// Outboxes that the index doesn't hold were looked for.
    pub(crate) read_flaws: bool,
}

/// What is read next.
enum Step {
    Begin,
    Due(Index),
    Undated { index: Index, wish: Option<u64>, noted: u64, found: bool },
    Slices { scan: Scan, left: usize, slice: Option<Slice>, found: bool },
    End,
}

/// A query under way.
struct Open {
    cursor: Cursor<RawDocumentBuf>,
    /// Found, and not yet queued because there was no room.
    waiting: VecDeque<Wanted>,
    /// Its first page was read.
    read_before: bool,
    /// The cursor is at its end.
    ended: bool,
}

/// What a round wants of a collection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// The full round that is still to be done for it.
    pub(crate) full: Option<u64>,
    /// Entries without a date were queued and are to be read again.
    pub(crate) undated: bool,
    /// How many slices may be read for outboxes that the index doesn't hold.
    pub(crate) flaws: usize,
}

/// What a turn amounted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There is more to read.
    More,
    /// Nothing can be queued until a pause ends.
    NoRoom,
    /// The collection was read to its end.
    Done,
    /// There is nobody to send to, or the sweep was stopped.
    Stopped,
}

/// What is there to read.
enum Next {
    Query,
    /// Another step is next.
    Step,
    /// A slice in which nothing has an outbox: its turn is over.
    Passed,
}

/// What a page amounted to.
enum Page {
    More,
    Last,
    NoRoom,
    Stopped,
}

/// What was read in one turn.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) examined: usize,
    pub(crate) queued: usize,
    pub(crate) queries: usize,
}

impl Count {
    pub(crate) fn turns(&mut self) -> Turns<'_> {
        Turns::Sweeping { queries: &mut self.queries }
    }
}

impl Pass {
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            step: Step::Begin,
            read: Read::Dated,
            open: None,
            fulfilled: None,
            read_undated: false,
            read_flaws: false,
        }
    }

    /// Reads one page.
    ///
    /// # Errors
    /// The pass is of no use then; the next one begins from the oldest again.
    pub(crate) async fn turn(
        &mut self,
        context: &Context,
        scans: &mut Scans,
        wish: Wish,
        count: &mut Count,
    ) -> Result<Turn, Error> {
        loop {
            if context.is_over() {
                return Ok(Turn::Stopped);
            }
            if matches!(self.step, Step::End) {
                // A scan reads a part in each round: only a whole lap says which documents are done.
                if !scans.is_under_way(Scan::Outboxes, &self.namespace) {
                    context.queued().end_pass(&self.namespace, self.read, Instant::now());
                }
                return Ok(Turn::Done);
            }
            if self.open.is_none() {
                match self.open_next(context, scans, wish, count).await {
                    Ok(Next::Query) => {}
                    Ok(Next::Step) => continue,
                    Ok(Next::Passed) => return Ok(Turn::More),
                    Err(error) if self.is_refused(&error) => {
                        self.scan_instead(context);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            let page = match self.page(context, count).await {
                Err(error) if self.is_refused(&error) => {
                    self.scan_instead(context);
                    continue;
                }
                page => page?,
            };
            match page {
                Page::More => return Ok(Turn::More),
                Page::NoRoom => return Ok(Turn::NoRoom),
                Page::Stopped => return Ok(Turn::Stopped),
                Page::Last => {
                    self.open = None;
                    self.finish_query(context, scans, wish);
                    let ended = matches!(self.step, Step::End);
                    if !ended {
                        return Ok(Turn::More);
                    }
                }
            }
        }
    }

    /// Whether the server won't go by the index.
    fn is_refused(&self, error: &Error) -> bool {
        is_refused_hint(error) && matches!(self.step, Step::Due(_))
    }

    fn scan_instead(&mut self, context: &Context) {
        catalogue::refuse_index(context, &self.namespace);
        self.open = None;
        self.step = slices(Scan::Outboxes, SLICES_A_ROUND);
    }

    /// Opens the next query.
    async fn open_next(
        &mut self,
        context: &Context,
        scans: &mut Scans,
        wish: Wish,
        count: &mut Count,
    ) -> Result<Next, Error> {
        let (filter, options) = match &mut self.step {
            Step::Begin => {
                catalogue::learn(context, &self.namespace, &mut count.turns()).await?;
                if !scans.is_under_way(Scan::Outboxes, &self.namespace) {
                    context.queued().begin_pass(&self.namespace);
                }
                let (index, holds) = {
                    let catalogue = context.catalogue();
                    (catalogue.index(&self.namespace), catalogue.holds(&self.namespace))
                };
                self.step = match index {
                    Some(index) => Step::Due(index),
                    None if holds == Holds::Nothing => Step::End,
                    None => slices(Scan::Outboxes, SLICES_A_ROUND),
                };
                return Ok(Next::Step);
            }
            Step::Due(index) => {
                let now = context.clock.now().await?;
                (due_by(now), by(index))
            }
            Step::Undated { index, .. } => (undated(), by(index)),
            Step::Slices { scan, slice, .. } => {
                let mut turns = count.turns();
                let (next, query) =
                    scans.next(context, *scan, &self.namespace, wish.full, &mut turns).await?;
                *slice = Some(next);
                let Some(query) = query else {
                    self.finish_query(context, scans, wish);
                    return Ok(Next::Passed);
                };
                query
            }
            Step::End => return Ok(Next::Step),
        };
        count.turns().wait(context).await;
        self.open = open(context, &self.namespace, filter, options).await?;
        Ok(Next::Query)
    }

    /// A query was read to its end: what comes after it.
    fn finish_query(&mut self, context: &Context, scans: &mut Scans, wish: Wish) {
        let namespace = &self.namespace;
        self.step = match std::mem::replace(&mut self.step, Step::End) {
            Step::Due(_) if wish.full.is_none() && !wish.undated && wish.flaws == 0 => Step::End,
            Step::Due(_) if wish.full.is_none() && !wish.undated => {
                self.read_flaws = true;
                slices(Scan::Flaws, wish.flaws)
            }
            // The range would be nearly the whole collection, all in one.
            Step::Due(index) if !index.partial => slices(Scan::Outboxes, SLICES_A_ROUND),
            Step::Due(index) => {
                self.read = Read::All;
                let noted = context.queued().undated(namespace).unwrap_or_default();
                Step::Undated { index, wish: wish.full, noted, found: false }
            }
            Step::Undated { wish, noted, found, .. } => {
                self.fulfilled = wish;
                self.read_undated = true;
                if !found {
                    context.queued().none_undated(namespace, noted);
                }
                Step::End
            }
            Step::Slices { scan, left, slice: Some(slice), found } => {
                match scans.read(scan, namespace, slice, found) {
                    Some(done) => {
                        if scan == Scan::Outboxes {
                            context.catalogue().found_none(namespace);
                            self.read = Read::All;
                            self.fulfilled = done.wish;
                            if !done.undated {
                                context.queued().none_undated(namespace, done.noted);
                            }
                        }
                        Step::End
                    }
                    None if left > 1 => Step::Slices { scan, left: left - 1, slice: None, found: false },
                    None => Step::End,
                }
            }
            Step::Begin | Step::Slices { .. } | Step::End => Step::End,
        };
    }

    /// Queues what waits, or what the next page of the open query has.
    async fn page(&mut self, context: &Context, count: &mut Count) -> Result<Page, Error> {
        let Some(open) = &mut self.open else {
            return Ok(Page::Stopped);
        };
        let mut wanted = Vec::new();
        if open.waiting.is_empty() {
            if open.ended {
                return Ok(Page::Last);
            }
            let found = read_page(context, &self.namespace, open, count).await?;
            let Some(found) = found else {
                return Ok(Page::Stopped);
            };
            match &mut self.step {
                Step::Undated { found: any, .. } | Step::Slices { found: any, .. } => *any |= found.undated,
                Step::Begin | Step::Due(_) | Step::End => {}
            }
            open.waiting = found.wanted.into();
        }

        // In order, so that nobody is overtaken by documents behind it.
        let now = Instant::now();
        while let Some(next) = open.waiting.pop_front() {
            match context.queued().admit(&next.document, &next.head, now) {
                Admission::Queue => wanted.push(next),
                Admission::Wait => {}
                Admission::Full => {
                    open.waiting.push_front(next);
                    break;
                }
            }
        }
        if wanted.is_empty() && !open.waiting.is_empty() {
            return Ok(Page::NoRoom);
        }

        let sent = send(context, wanted, Reason::Sweep).await;
        count.queued += sent.confirmed;
        if !sent.failed.is_empty() || context.is_over() {
            return Ok(Page::Stopped);
        }
        if open.waiting.is_empty() && open.ended {
            return Ok(Page::Last);
        }
        if !open.waiting.is_empty() {
            return Ok(Page::NoRoom);
        }
        Ok(Page::More)
    }
}

/// What a page holds.
struct Found {
    wanted: Vec<Wanted>,
    undated: bool,
}

/// Reads the next page; none when told to stop.
async fn read_page(
    context: &Context,
    namespace: &Namespace,
    open: &mut Open,
    count: &mut Count,
) -> Result<Option<Found>, Error> {
    let page = context.settings.page_size;
    let moment = Moment::sweeping(context.clock.now().await?, context.plan.delay);
    let mut found = Found { wanted: Vec::new(), undated: false };
    let mut read = 0;
    // The first page came with the query.
    if open.read_before {
        count.turns().wait(context).await;
    }
    open.read_before = true;
    while read < page {
        // A stop needn't wait for what the server is still looking for.
        let Some(more) = context.stop.run_until_cancelled(open.cursor.advance()).await else {
            return Ok(None);
        };
        if !more? {
            open.ended = true;
            break;
        }
        read += 1;
        let looked = look(context, namespace, open.cursor.current(), moment);
        found.undated |= looked.undated;
        found.wanted.extend(looked.wanted);
    }
    count.examined += read;
    Ok(Some(found))
}

async fn open(
    context: &Context,
    namespace: &Namespace,
    filter: Document,
    mut options: FindOptions,
) -> Result<Option<Open>, Error> {
    options.projection = Some(projection());
    options.batch_size = u32::try_from(context.settings.page_size).ok();
    options.max_time = Some(LONGEST_QUERY);
    let collection = context.collection(namespace);
    let find = collection.find(filter).with_options(options);
    let Some(cursor) = context.stop.run_until_cancelled(find.into_future()).await else {
        return Ok(None);
    };
    Ok(Some(Open { cursor: cursor?, waiting: VecDeque::new(), ended: false, read_before: false }))
}

fn slices(scan: Scan, left: usize) -> Step {
    Step::Slices { scan, left, slice: None, found: false }
}

fn by(index: &Index) -> FindOptions {
    FindOptions::builder().hint(Hint::Name(index.name.clone())).build()
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

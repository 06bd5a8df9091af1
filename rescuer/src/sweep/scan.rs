//! Reads a collection slice by slice in the order of `_id`, for searches that no index supports.
//!
//! Without an index, a query for non-empty outboxes may read the whole collection before it answers. So
//! the scan first uses the index on `_id` to find where the next slice ends, then reads that slice. The
//! slice is bounded with `min` and `max`, because `$gt` on `_id` only compares values of one BSON type and
//! would miss documents whose `_id` has another type.
//!
//! | read | in which collections | purpose |
//! |---|---|---|
//! | [`Scan::Outboxes`] | without an index that holds entries without a date | everything in a filled outbox |
//! | [`Scan::Flaws`] | with the index | outboxes that the index doesn't cover, because they are not arrays or have no element with an `id` |
//!
//! A lap is one pass from end to end. A lap in progress is never restarted, because then the end of a
//! large collection might never be read. A request that arrives during a lap is fulfilled by the next lap.

use std::collections::{HashMap, HashSet};

use mongodb::{
    Namespace,
    bson::{Bson, Document, doc},
    options::{FindOptions, Hint},
};

use super::{budget::Turns, catalogue::Catalogue, facts::Holds, query::LONGEST_QUERY};
use crate::{halt::Interrupted, leadership::term::Term};

/// The number of documents in a slice.
const SLICE: u64 = 5_000;
/// The number of documents that are tried as the end of a slice. Several are tried because an `_id`
/// that isn't valid UTF-8 can't be the end.
const BOUNDS: i64 = 100;
/// The number of slices of one collection that a round reads.
pub(crate) const SLICES_A_ROUND: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scan {
    Outboxes,
    Flaws,
}

/// The place where each scan continues.
#[derive(Debug, Default)]
pub(crate) struct Scans(HashMap<(Scan, Namespace), Lap>);

/// One pass through a collection.
#[derive(Debug, Clone, Default)]
struct Lap {
    /// Where the next slice begins; `None` at the start.
    from: Option<Bson>,
    /// The number of the full round that was requested when the lap began.
    wish: Option<u64>,
    /// Whether an entry without a date was seen.
    undated: bool,
    /// The number of documents that had been queued for entries without a date when the lap began.
    noted: u64,
}

/// A slice that is being read.
pub(crate) struct Slice {
    /// Where the slice ends; `None` at the end of the collection.
    to: Option<Bson>,
    /// Whether an entry without a date was seen in the slice.
    pub(crate) undated: bool,
}

/// How a slice is read.
pub(crate) enum SliceQuery {
    Find(Document, Box<FindOptions>),
    /// No document in the slice has the field `outbox`.
    Empty,
}

/// The state of a lap after one of its slices was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LapState {
    UnderWay,
    Ended(EndedLap),
}

/// A lap that has reached the end of its collection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EndedLap {
    /// The number of the full round that the lap fulfils.
    pub(crate) wish: Option<u64>,
    pub(crate) undated: bool,
    pub(crate) noted: u64,
}

impl Scans {
    /// The next slice of a collection. If a lap begins with this slice, the lap fulfils the full round with
    /// the number `wish`; `noted` is the number of documents that were queued for entries without a date
    /// until now.
    pub(crate) async fn next(
        &mut self,
        term: &Term,
        catalogue: &Catalogue,
        (scan, namespace): (Scan, &Namespace),
        (wish, noted): (Option<u64>, u64),
        turns: &mut Turns<'_>,
    ) -> Result<(Slice, SliceQuery), Interrupted> {
        let new = Lap { from: None, wish, undated: false, noted };
        let lap = self.0.entry((scan, namespace.clone())).or_insert(new);

        turns.wait().await?;
        let to = end_of_slice(term, namespace, lap.from.clone()).await?;
        let bounds = bounds(lap.from.clone(), to.clone());
        let slice = Slice { to, undated: false };
        if catalogue.holds(namespace) == Holds::Outboxes {
            return Ok((slice, SliceQuery::Find(filter(scan), Box::new(bounds))));
        }

        turns.wait().await?;
        if !has_outbox(term, namespace, bounds.clone()).await? {
            return Ok((slice, SliceQuery::Empty));
        }
        catalogue.found_outbox(namespace);
        Ok((slice, SliceQuery::Find(filter(scan), Box::new(bounds))))
    }

    /// Records that a slice was read.
    pub(crate) fn read(&mut self, scan: Scan, namespace: &Namespace, slice: Slice) -> LapState {
        let key = (scan, namespace.clone());
        let Some(mut lap) = self.0.remove(&key) else {
            return LapState::UnderWay;
        };
        lap.undated |= slice.undated;

        match slice.to {
            Some(to) => {
                lap.from = Some(to);
                self.0.insert(key, lap);
                LapState::UnderWay
            }
            None => LapState::Ended(EndedLap { wish: lap.wish, undated: lap.undated, noted: lap.noted }),
        }
    }

    /// Whether the end of the collection was not reached yet.
    pub(crate) fn is_under_way(&self, scan: Scan, namespace: &Namespace) -> bool {
        self.0.contains_key(&(scan, namespace.clone()))
    }

    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
        let there: HashSet<&Namespace> = namespaces.iter().collect();
        self.0.retain(|(_, namespace), _| there.contains(namespace));
    }
}

fn filter(scan: Scan) -> Document {
    // `$ne: []` would also exclude an outbox that has an empty array among its elements.
    let filled = doc! { "$exists": true, "$not": { "$size": 0 } };
    match scan {
        Scan::Outboxes => doc! { "outbox": filled },
        Scan::Flaws => doc! { "$or": [
            { "outbox.id": { "$exists": false }, "outbox": filled },
            { "outbox": { "$exists": true, "$not": { "$type": "array" } } },
        ] },
    }
}

/// The `_id` with which the next slice begins; `None` if the collection ends first.
async fn end_of_slice(
    term: &Term,
    namespace: &Namespace,
    from: Option<Bson>,
) -> Result<Option<Bson>, Interrupted> {
    let mut options = bounds(from, None);
    options.skip = Some(SLICE);
    options.limit = Some(BOUNDS);
    options.projection = Some(doc! { "_id": 1 });

    let collection = term.mongo.collection(namespace);
    let find = collection.find(Document::new()).with_options(options);
    let mut cursor = term.unless_stopped(find.into_future()).await??;
    while term.unless_stopped(cursor.advance()).await?? {
        let id = cursor.current().get("_id").ok().flatten();
        if let Some(id) = id.and_then(|id| Bson::try_from(id).ok()) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// Whether any document of a slice has the field `outbox`, even with an empty array.
async fn has_outbox(
    term: &Term,
    namespace: &Namespace,
    mut options: FindOptions,
) -> Result<bool, Interrupted> {
    options.limit = Some(1);
    options.projection = Some(doc! { "_id": 1 });

    let collection = term.mongo.collection(namespace);
    let find = collection.find(doc! { "outbox": { "$exists": true } }).with_options(options);
    let mut cursor = term.unless_stopped(find.into_future()).await??;
    Ok(term.unless_stopped(cursor.advance()).await??)
}

fn bounds(from: Option<Bson>, to: Option<Bson>) -> FindOptions {
    let mut options = FindOptions::builder().hint(Hint::Keys(doc! { "_id": 1 })).build();
    options.max_time = Some(LONGEST_QUERY);
    options.min = from.map(bound);
    options.max = to.map(bound);
    options
}

fn bound(id: Bson) -> Document {
    doc! { "_id": id }
}

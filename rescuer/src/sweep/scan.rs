//! Reading a collection slice by slice in the order of `_id`, where no index helps.
//!
//! A query for filled outboxes without an index reads the whole collection before it may answer. So the scan first asks the
//! index on `_id` where the next slice ends, then reads that slice. `min` and `max` bound it, since `$gt` on `_id` stays
//! within one BSON type and would miss the documents whose `_id` is of another.
//!
//! | what is read | of which collections | what for |
//! |---|---|---|
//! | [`Scan::Outboxes`] | without an index that holds entries without a date | everything in a filled outbox |
//! | [`Scan::Flaws`] | with the index | outboxes that the index doesn't hold: no array, or no element with an `id` |
//!
//! A lap goes once from end to end. One under way is never begun again, or the end of a large collection would never be
//! read; a wish that comes meanwhile is fulfilled by the lap after it.

use std::collections::HashMap;

use mongodb::{
    Namespace,
    bson::{Bson, Document, doc},
    error::Error,
    options::{FindOptions, Hint},
};

use crate::{
    leadership::term::Context,
    sweep::budget::Turns,
    sweep::catalogue::{self, Holds},
    sweep::read::LONGEST_QUERY,
};

/// How many documents a slice has.
const SLICE: u64 = 5_000;
/// How many documents are tried for the end of a slice: an `_id` that isn't valid UTF-8 can't be one.
const BOUNDS: i64 = 100;
/// How many slices a round reads of one collection.
pub(crate) const SLICES_A_ROUND: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scan {
    Outboxes,
    Flaws,
}

/// Where each scan continues.
#[derive(Debug, Default)]
pub(crate) struct Scans(HashMap<(Scan, Namespace), Lap>);

/// One way through a collection.
#[derive(Debug, Clone, Default)]
struct Lap {
    /// Where the next slice begins; none at the start.
    from: Option<Bson>,
    /// The wish that was there when it began.
    wish: Option<u64>,
    /// Whether an entry without a date was seen.
    undated: bool,
    /// What the memory said of such entries when it began.
    noted: u64,
}

/// A slice that is being read: where it ends; none at the end of the collection.
pub(crate) struct Slice(Option<Bson>);

/// How to read it; none where no document in it has the field `outbox`.
pub(crate) type Query = Option<(Document, FindOptions)>;

/// A lap that reached the end of its collection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// The wish that it fulfils.
    pub(crate) wish: Option<u64>,
    pub(crate) undated: bool,
    pub(crate) noted: u64,
}

impl Scans {
    /// The next slice of a collection.
    pub(crate) async fn next(
        &mut self,
        context: &Context,
        scan: Scan,
        namespace: &Namespace,
        wish: Option<u64>,
        turns: &mut Turns<'_>,
    ) -> Result<(Slice, Query), Error> {
        let noted = context.queued().undated(namespace).unwrap_or_default();
        let lap =
            self.0.entry((scan, namespace.clone())).or_insert_with(|| Lap { wish, noted, ..Lap::default() });
        turns.wait(context).await;
        let to = end_of_slice(context, namespace, lap.from.clone()).await?;
        let bounds = bounds(lap.from.clone(), to.clone());
        let query = (filter(scan), bounds.clone());
        if context.catalogue().holds(namespace) == Holds::Outboxes {
            return Ok((Slice(to), Some(query)));
        }
        turns.wait(context).await;
        if !has_outbox(context, namespace, bounds).await? {
            return Ok((Slice(to), None));
        }
        catalogue::found_outbox(context, namespace);
        Ok((Slice(to), Some(query)))
    }

    /// A slice was read; the lap, if it was the last one.
    pub(crate) fn read(
        &mut self,
        scan: Scan,
        namespace: &Namespace,
        slice: Slice,
        undated: bool,
    ) -> Option<Done> {
        let key = (scan, namespace.clone());
        let lap = self.0.get_mut(&key)?;
        lap.undated |= undated;
        match slice.0 {
            Some(to) => {
                lap.from = Some(to);
                None
            }
            None => {
                let lap = self.0.remove(&key)?;
                Some(Done { wish: lap.wish, undated: lap.undated, noted: lap.noted })
            }
        }
    }

    /// Whether the end of the collection is still to be read.
    pub(crate) fn is_under_way(&self, scan: Scan, namespace: &Namespace) -> bool {
        self.0.contains_key(&(scan, namespace.clone()))
    }

    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
        let there: std::collections::HashSet<&Namespace> = namespaces.iter().collect();
        self.0.retain(|(_, namespace), _| there.contains(namespace));
    }
}

fn filter(scan: Scan) -> Document {
    // `$ne: []` would also pass over an outbox that has an empty array among its elements.
    let filled = doc! { "$exists": true, "$not": { "$size": 0 } };
    match scan {
        Scan::Outboxes => doc! { "outbox": filled },
        Scan::Flaws => doc! { "$or": [
            { "outbox.id": { "$exists": false }, "outbox": filled },
            { "outbox": { "$exists": true, "$not": { "$type": "array" } } },
        ] },
    }
}

/// The `_id` behind the slice; none where the collection ends before.
async fn end_of_slice(
    context: &Context,
    namespace: &Namespace,
    from: Option<Bson>,
) -> Result<Option<Bson>, Error> {
    let mut options = bounds(from, None);
    options.skip = Some(SLICE);
    options.limit = Some(BOUNDS);
    options.projection = Some(doc! { "_id": 1 });
    let collection = context.collection(namespace);
    let end = async {
        let mut cursor = collection.find(Document::new()).with_options(options).await?;
        while cursor.advance().await? {
            let id = cursor.current().get("_id").ok().flatten();
            if let Some(id) = id.and_then(|id| Bson::try_from(id).ok()) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    };
    // Told to stop, nothing is read of a slice anyway.
    context.stop.run_until_cancelled(end).await.unwrap_or(Ok(None))
}

/// Whether any document of a slice has the field `outbox`, be it empty.
async fn has_outbox(
    context: &Context,
    namespace: &Namespace,
    mut options: FindOptions,
) -> Result<bool, Error> {
    options.limit = Some(1);
    options.projection = Some(doc! { "_id": 1 });
    let collection = context.collection(namespace);
    let find = async {
        let filter = doc! { "outbox": { "$exists": true } };
        let mut cursor = collection.find(filter).with_options(options).await?;
        cursor.advance().await
    };
    context.stop.run_until_cancelled(find).await.unwrap_or(Ok(true))
}

fn bounds(from: Option<Bson>, to: Option<Bson>) -> FindOptions {
    let bound = |id: Bson| doc! { "_id": id };
    let mut options = FindOptions::builder().hint(Hint::Keys(doc! { "_id": 1 })).build();
    options.max_time = Some(LONGEST_QUERY);
    options.min = from.map(bound);
    options.max = to.map(bound);
    options
}

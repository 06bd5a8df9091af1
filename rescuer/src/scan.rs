//! Sweeping a collection that lacks the index: slice by slice in the order of `_id`, a few slices a round.
//!
//! A query for filled outboxes without an index reads the whole collection before it may answer. So the scan first asks the
//! index on `_id` where the next slice ends, then reads that slice. `min` and `max` bound it, since `$gt` on `_id` stays
//! within one BSON type and would miss the documents whose `_id` is of another.

use std::collections::HashMap;

use mongodb::{
    Namespace,
    bson::{Bson, Document, doc},
    error::Error,
    options::{FindOptions, Hint},
};

use crate::sweep::{LONGEST_QUERY, Reading, Sweep, Tally};

/// How many documents a slice has.
const SLICE: u64 = 5_000;
/// How many slices a round reads of one collection.
const SLICES_A_ROUND: usize = 4;

/// Where each scan goes on: at this `_id`.
#[derive(Debug, Default)]
pub(crate) struct Scans(HashMap<Namespace, Bson>);

impl Scans {
    /// Reads the next slices of a collection, and begins a scan where none is under way. One under way is never begun anew,
    /// or the end of a large collection would never be read.
    pub(crate) async fn go_on(
        &mut self,
        sweep: &mut Sweep,
        namespace: &Namespace,
        tally: &mut Tally,
    ) -> Result<Reading, Error> {
        for _ in 0..SLICES_A_ROUND {
            let from = self.0.get(namespace).cloned();
            let to = end_of_slice(sweep, namespace, from.clone(), tally).await?;
            let filled = doc! { "outbox.0": { "$exists": true } };
            if sweep.read(namespace, filled, bounds(from, to.clone()), tally).await? == Reading::Enough {
                return Ok(Reading::Enough);
            }
            match to {
                Some(to) => drop(self.0.insert(namespace.clone(), to)),
                None => {
                    self.0.remove(namespace);
                    break;
                }
            }
        }
        Ok(Reading::GoOn)
    }

    /// Whether the end of the collection is still to be read.
    pub(crate) fn is_under_way(&self, namespace: &Namespace) -> bool {
        self.0.contains_key(namespace)
    }

    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
        self.0.retain(|namespace, _| namespaces.contains(namespace));
    }
}

/// The `_id` behind the slice; none where the collection ends before.
async fn end_of_slice(
    sweep: &mut Sweep,
    namespace: &Namespace,
    from: Option<Bson>,
    tally: &mut Tally,
) -> Result<Option<Bson>, Error> {
    sweep.turn(tally).await;
    let mut options = bounds(from, None);
    options.skip = Some(SLICE);
    options.limit = Some(1);
    options.projection = Some(doc! { "_id": 1 });
    let collection = sweep.context.collection(namespace);
    let end = async {
        let mut cursor = collection.find(Document::new()).with_options(options).await?;
        if !cursor.advance().await? {
            return Ok(None);
        }
        let id = cursor.current().get("_id").ok().flatten();
        Ok(id.and_then(|id| Bson::try_from(id).ok()))
    };
    // Told to stop, nothing is read of a slice anyway.
    sweep.context.stop.run_until_cancelled(end).await.unwrap_or(Ok(None))
}

fn bounds(from: Option<Bson>, to: Option<Bson>) -> FindOptions {
    let bound = |id: Bson| doc! { "_id": id };
    let mut options = FindOptions::builder().hint(Hint::Keys(doc! { "_id": 1 })).build();
    options.max_time = Some(LONGEST_QUERY);
    options.min = from.map(bound);
    options.max = to.map(bound);
    options
}

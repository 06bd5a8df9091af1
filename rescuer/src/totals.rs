//! How much is pending and dead, looked at in the background out of the sweep's budget of queries.
//!
//! By the indexes only: a collection without them is not counted. At most [`MOST`] documents are.

use std::{collections::HashMap, sync::Arc, time::Duration};

use document_outbox::clock::until;
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, doc},
    error::Error,
    options::Hint,
};

use crate::{context::Context, fault, index::Index, metrics::Totals};

/// Counting ends here.
const MOST: i64 = 100_000;
/// No query takes longer.
const LONGEST: Duration = Duration::from_secs(30);
/// So many of those that have been due for longest are looked at for the oldest.
const ELDERS: i64 = 100;

/// Looks at all collections again and again, until told to stop.
pub(crate) async fn refresh(context: Arc<Context>) {
    let mut told: HashMap<Namespace, Totals> = HashMap::new();
    while !context.stop.is_cancelled() {
        let collections = context.collections();
        for namespace in told.extract_if(|known, _| !collections.contains_key(known)).collect::<Vec<_>>() {
            context.report.metrics.totals(&namespace.0, Totals::default());
        }
        for (namespace, index) in collections {
            // A stop needn't wait for what the server is still counting.
            let looked = context.stop.run_until_cancelled(look(&context, &namespace, index.as_ref())).await;
            match looked {
                None => break,
                Some(Ok(totals)) => {
                    context.report.metrics.totals(&namespace, totals);
                    told.insert(namespace, totals);
                }
                Some(Err(error)) => {
                    tracing::debug!(%namespace, error = fault::text(&error), "could not count what is pending");
                }
            }
        }
        let pause = tokio::time::sleep(context.settings.totals_interval);
        tokio::select! {
            () = pause => {}
            () = context.stop.cancelled() => {}
        }
    }
    // The next owner tells of them.
    told.keys().for_each(|namespace| context.report.metrics.totals(namespace, Totals::default()));
}

async fn look(context: &Context, namespace: &Namespace, index: Option<&Index>) -> Result<Totals, Error> {
    let mut totals = Totals::default();
    if let Some(index) = index {
        let hint = || Hint::Name(index.name.clone());
        let now = context.clock.now().await?;
        totals.oldest = oldest(context, namespace, hint(), now).await?;
        if index.partial {
            let filled = doc! { "$match": { "outbox.id": { "$exists": true } } };
            let stages = vec![filled, doc! { "$limit": MOST }, doc! { "$count": "n" }];
            totals.pending = count(context, namespace, stages, hint()).await?;
        }
    }
    let outbox = doc! { "$cond": [{ "$isArray": "$outbox" }, "$outbox", []] };
    let dead = doc! { "$filter": { "input": outbox, "cond": { "$gt": ["$$this.dead_at", Bson::Null] } } };
    let stages = vec![
        doc! { "$match": { "outbox.dead_at": { "$exists": true } } },
        doc! { "$limit": MOST },
        doc! { "$group": { "_id": Bson::Null, "n": { "$sum": { "$size": dead } } } },
    ];
    let by_dead = Hint::Keys(doc! { "outbox.dead_at": 1 });
    totals.dead = match count(context, namespace, stages, by_dead).await {
        // There is no such index.
        Err(error) if crate::index::is_refused_hint(&error) => 0,
        counted => counted?,
    };
    Ok(totals)
}

async fn count(
    context: &Context,
    namespace: &Namespace,
    stages: Vec<Document>,
    hint: Hint,
) -> Result<u64, Error> {
    turn(context).await;
    let collection = context.collection(namespace);
    let mut cursor = collection.aggregate(stages).hint(hint).max_time(LONGEST).await?;
    if !cursor.advance().await? {
        return Ok(0);
    }
    let counted = cursor.deserialize_current()?;
    let counted = counted.get_i64("n").or_else(|_| counted.get_i32("n").map(i64::from));
    Ok(counted.ok().and_then(|counted| u64::try_from(counted).ok()).unwrap_or(0))
}

/// The age of the oldest message among the documents that have been due for longest.
async fn oldest(
    context: &Context,
    namespace: &Namespace,
    hint: Hint,
    now: DateTime,
) -> Result<Duration, Error> {
    turn(context).await;
    let due = doc! { "outbox.id": { "$exists": true }, "outbox": { "$elemMatch": { "available_at": { "$lte": now } } } };
    let fields = doc! {
        "outbox.available_at": 1, "outbox.created_at": 1, "outbox.claimed_by": 1, "outbox.attempts": 1,
    };
    let collection = context.collection(namespace).clone_with_type::<Document>();
    let found = collection.find(due).hint(hint).projection(fields).limit(ELDERS).max_time(LONGEST);
    let mut cursor = found.await?;
    let mut oldest = Duration::ZERO;
    while cursor.advance().await? {
        let document = cursor.deserialize_current()?;
        let entries = document.get_array("outbox").into_iter().flatten();
        let ages = entries.filter_map(|entry| age(entry.as_document()?, now));
        oldest = ages.fold(oldest, Duration::max);
    }
    Ok(oldest)
}

/// How old a due entry is: since it was made, or, if it was scheduled, since it is due.
fn age(entry: &Document, now: DateTime) -> Option<Duration> {
    let due = *entry.get_datetime("available_at").ok()?;
    let made = entry.get_datetime("created_at").copied().unwrap_or(due);
    let tried =
        entry.contains_key("claimed_by") || entry.get_i32("attempts").is_ok_and(|attempts| attempts > 0);
    let from = if tried { made.min(due) } else { made.max(due) };
    (due <= now).then(|| until(from, now))
}

async fn turn(context: &Context) {
    context.stop.run_until_cancelled(context.budget.turn()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_old_as_it_was_made_but_a_scheduled_one_as_it_is_due() {
        let at = DateTime::from_millis;
        let entry = |due, extra| {
            let mut entry = doc! { "created_at": at(1000), "available_at": at(due) };
            entry.extend(extra);
            age(&entry, at(9000)).map(|age| age.as_millis())
        };
        assert_eq!(entry(1000, doc! {}), Some(8000));
        assert_eq!(entry(7000, doc! {}), Some(2000), "scheduled");
        assert_eq!(entry(7000, doc! { "attempts": 3 }), Some(8000), "failed");
        assert_eq!(entry(7000, doc! { "claimed_by": "gone" }), Some(8000));
        assert_eq!(entry(9001, doc! {}), None, "not due");
        assert_eq!(age(&doc! { "available_at": "x" }, at(9000)), None);
    }
}

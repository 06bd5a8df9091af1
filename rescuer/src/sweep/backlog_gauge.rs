//! How much is pending and dead, counted in the background out of a share of the sweep's budget of queries.
//!
//! It goes by the indexes only: what has none is not counted, and its series say so by not being a number. It lists the
//! collections by itself and needs no broker, since it is during an outage that the figures are needed.
//!
//! A look reads every filled outbox of a collection. So after one that took long, the next waits for ten times as long.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::internal::until;
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, doc},
    error::Error,
    options::Hint,
};

use crate::{
    classify,
    leadership::term::Context,
    observe::metrics::{Filled, STATES, Totals},
    sweep::budget::Turns,
    sweep::catalogue::{self, Holds},
    sweep::collections,
    sweep::unwatchable,
};

/// Counting ends here.
const MOST: i64 = 100_000;
/// No query takes longer.
const LONGEST: Duration = Duration::from_secs(30);
/// How many of the documents that have been due for longest are read for the oldest message.
const ELDERS: i64 = 100;
/// A look takes at most this part of the time.
const SHARE: u32 = 10;

/// When a collection is looked at again.
#[derive(Debug)]
struct Looked {
    again: Instant,
}

/// Looks at all collections again and again, until told to stop.
pub(crate) async fn refresh(context: Arc<Context>) {
    if !context.settings.count_totals {
        return;
    }
    // What is due is looked for first, unless that takes long, or can't begin because there is no broker.
    tokio::select! {
        () = context.swept.cancelled() => {}
        () = tokio::time::sleep(context.settings.totals_interval) => {}
        () = context.stop.cancelled() => {}
    }
    let mut looked: HashMap<Namespace, Looked> = HashMap::new();
    while !context.stop.is_cancelled() {
        // A stop needn't wait for what the server is still counting.
        let round = round(&context, &mut looked);
        if let Some(Err(error)) = context.stop.run_until_cancelled(round).await {
            tracing::debug!(error = classify::text(&error), "could not list the collections to count in");
        }
        let pause = tokio::time::sleep(context.settings.totals_interval);
        context.stop.run_until_cancelled(pause).await;
    }
    // The next owner reports them.
    for namespace in looked.keys() {
        context.report.metrics.totals(namespace, Totals::default());
    }
}

async fn round(context: &Context, looked: &mut HashMap<Namespace, Looked>) -> Result<(), Error> {
    let listing = collections::list_all(context, &mut Turns::Counting).await?;
    let collections = listing.watched(&context.plan.coverage);
    if listing.failed.is_empty() {
        unwatchable::report(context, &listing, &mut Turns::Counting).await;
        for (gone, _) in looked.extract_if(|known, _| !collections.contains(known)) {
            context.report.metrics.totals(&gone, Totals::default());
        }
    }
    for namespace in collections {
        if looked.get(&namespace).is_some_and(|looked| Instant::now() < looked.again) {
            continue;
        }
        let learned = catalogue::learn(context, &namespace, &mut Turns::Counting).await;
        let begun = Instant::now();
        let counted = match learned {
            Ok(()) if context.catalogue().holds(&namespace) != Holds::Outboxes => continue,
            Ok(()) => look(context, &namespace).await,
            Err(error) => Err(error),
        };
        let totals = counted.unwrap_or_else(|error| {
            tracing::debug!(
                namespace = namespace.to_string(),
                error = classify::text(&error),
                "could not count what is pending"
            );
            // Better none than those of before.
            Totals::default()
        });
        context.report.metrics.totals(&namespace, totals);
        let again = Instant::now() + begun.elapsed() * SHARE;
        looked.insert(namespace, Looked { again });
    }
    Ok(())
}

async fn look(context: &Context, namespace: &Namespace) -> Result<Totals, Error> {
    let (index, has_dead_index) = {
        let catalogue = context.catalogue();
        (catalogue.index(namespace), catalogue.has_dead_index(namespace))
    };
    let mut totals = Totals::default();
    if let Some(index) = index {
        let hint = || Hint::Name(index.name.clone());
        let now = context.clock.now().await?;
        totals.oldest = Some(oldest(context, namespace, hint(), now).await?);
        if index.partial {
            let (pending, filled) = filled(context, namespace, hint(), now).await?;
            (totals.pending, totals.filled) = (Some(pending), Some(filled));
            // Of all of them where counting didn't end before.
            let [.., dead] = filled.messages;
            totals.dead = (pending < MOST as u64).then_some(dead);
        }
    }
    if has_dead_index {
        totals.dead = Some(dead(context, namespace).await?);
    }
    if let Some(dead) = totals.dead {
        catalogue::found_dead(context, namespace, dead > 0);
    }
    Ok(totals)
}

/// What the filled outboxes hold, and how many there are.
async fn filled(
    context: &Context,
    namespace: &Namespace,
    hint: Hint,
    now: DateTime,
) -> Result<(u64, Filled), Error> {
    let Some(counted) = aggregate(context, namespace, by_state(now), hint).await? else {
        return Ok((0, Filled::default()));
    };
    let mut filled = Filled { fullest: number(&counted, "fullest"), ..Filled::default() };
    for (at, state) in STATES.into_iter().enumerate() {
        filled.messages[at] = number(&counted, state);
    }
    if let Ok(since) = counted.get_datetime("oldest") {
        filled.oldest = until(*since, now);
    }
    Ok((number(&counted, "documents"), filled))
}

fn by_state(now: DateTime) -> Vec<Document> {
    let outbox = doc! { "$cond": [{ "$isArray": "$outbox" }, "$outbox", []] };
    let entry = doc! { "state": state(now), "since": since(now) };
    let entries = doc! { "$map": { "input": outbox, "as": "e", "in": entry } };
    let mut group = doc! {
        "_id": Bson::Null,
        "documents": { "$sum": 1 },
        "fullest": { "$max": { "$size": "$entries" } },
        "oldest": { "$min": { "$min": "$waiting.since" } },
    };
    for state in STATES {
        let of_state = doc! { "input": "$entries", "cond": { "$eq": ["$$this.state", state] } };
        group.insert(state, doc! { "$sum": { "$size": { "$filter": of_state } } });
    }
    let waiting = doc! { "$filter": {
        "input": "$entries", "cond": { "$in": ["$$this.state", ["due", "claimed", "retrying"]] },
    } };
    vec![
        doc! { "$match": { "outbox.id": { "$exists": true } } },
        doc! { "$limit": MOST },
        doc! { "$project": { "_id": 0, "entries": entries } },
        doc! { "$addFields": { "waiting": waiting } },
        doc! { "$group": group },
    ]
}

/// The state of an element, as in ARCHITECTURE.md; none where it can't be an entry.
fn state(now: DateTime) -> Document {
    let is_not_a = |field: &str, kind: &str| doc! { "$ne": [{ "$type": field }, kind] };
    let due_at = doc! { "$ifNull": ["$$e.available_at", DateTime::MIN] };
    let made = doc! { "$ifNull": ["$$e.created_at", DateTime::MIN] };
    let attempts = doc! { "$gt": ["$$e.attempts", 0] };
    let branch = |case: Document, then: &str| doc! { "case": case, "then": then };
    let no_entry = doc! { "$or": [is_not_a("$$e.id", "binData"), is_not_a("$$e.type", "string")] };
    doc! { "$switch": {
        "branches": [
            branch(no_entry, ""),
            branch(doc! { "$eq": [{ "$type": "$$e.dead_at" }, "date"] }, "dead"),
            branch(doc! { "$lte": [due_at.clone(), now] }, "due"),
            branch(doc! { "$eq": [{ "$type": "$$e.claimed_by" }, "string"] }, "claimed"),
            branch(attempts, "retrying"),
            // Sent as due, by a clock that is ahead.
            branch(doc! { "$lte": [due_at, made] }, "due"),
        ],
        "default": "scheduled",
    } }
}

/// Since when a message waits: since it was made, or, if it was scheduled, since it is due.
fn since(now: DateTime) -> Document {
    let is_past = doc! { "$lte": ["$$e.available_at", now] };
    let due_at = doc! { "$cond": [is_past, "$$e.available_at", Bson::Null] };
    let was_tried = doc! { "$or": [
        { "$eq": [{ "$type": "$$e.claimed_by" }, "string"] },
        { "$gt": ["$$e.attempts", 0] },
        { "$gt": ["$$e.claims", 0] },
    ] };
    let dates = doc! { "made": "$$e.created_at", "due": due_at };
    // Both leave out what is missing or null.
    let waits =
        doc! { "$cond": [was_tried, { "$min": ["$$made", "$$due"] }, { "$max": ["$$made", "$$due"] }] };
    doc! { "$let": { "vars": dates, "in": waits } }
}

async fn dead(context: &Context, namespace: &Namespace) -> Result<u64, Error> {
    let outbox = doc! { "$cond": [{ "$isArray": "$outbox" }, "$outbox", []] };
    let dead = doc! { "$filter": { "input": outbox, "cond": { "$gt": ["$$this.dead_at", Bson::Null] } } };
    let stages = vec![
        doc! { "$match": { "outbox.dead_at": { "$exists": true } } },
        doc! { "$limit": MOST },
        doc! { "$group": { "_id": Bson::Null, "n": { "$sum": { "$size": dead } } } },
    ];
    let by_dead = Hint::Keys(doc! { "outbox.dead_at": 1 });
    let counted = aggregate(context, namespace, stages, by_dead).await?;
    Ok(counted.map_or(0, |counted| number(&counted, "n")))
}

async fn aggregate(
    context: &Context,
    namespace: &Namespace,
    stages: Vec<Document>,
    hint: Hint,
) -> Result<Option<Document>, Error> {
    Turns::Counting.wait(context).await;
    let collection = context.collection(namespace);
    let mut cursor = collection.aggregate(stages).hint(hint).max_time(LONGEST).await?;
    if !cursor.advance().await? {
        return Ok(None);
    }
    cursor.deserialize_current().map(Some)
}

fn number(counted: &Document, name: &str) -> u64 {
    let number = counted.get_i64(name).or_else(|_| counted.get_i32(name).map(i64::from));
    number.ok().and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

/// The age of the oldest message among the documents that have been due for longest.
async fn oldest(
    context: &Context,
    namespace: &Namespace,
    hint: Hint,
    now: DateTime,
) -> Result<Duration, Error> {
    Turns::Counting.wait(context).await;
    let due = doc! { "outbox.id": { "$exists": true }, "outbox": { "$elemMatch": { "available_at": { "$lte": now } } } };
    let fields = doc! {
        "_id": 0, "outbox.available_at": 1, "outbox.created_at": 1, "outbox.claimed_by": 1, "outbox.attempts": 1,
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

//! Counts pending and dead messages in the background, within a share of the sweep's budget of queries.
//!
//! Counting uses only the indexes: a collection without an index is not counted, and its series are NaN.
//! The gauge lists the collections itself and needs no broker, because the figures are needed during an
//! outage of the broker.
//!
//! Counting reads every non-empty outbox of a collection. So the pause after a count is ten times as long
//! as the count took.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::internal::until;
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, doc},
    options::Hint,
};
use tokio_util::sync::CancellationToken;

use super::{
    budget::{Budget, Turns},
    catalogue::Catalogue,
    collections,
    facts::Holds,
    query::due_by,
    unwatchable,
};
use crate::{
    classify,
    halt::{Halt, Interrupted, Run},
    leadership::term::Term,
    observe::metrics::{Contents, Metrics, STATES, Totals},
};

/// Counting in a collection stops at this number of documents.
const MOST: i64 = 100_000;
/// The time limit of a query.
const LONGEST: Duration = Duration::from_secs(30);
/// To find the oldest message, the gauge reads this many documents: those that have been due for the longest
/// time.
const ELDERS: i64 = 100;
/// The maximum share of the time that counting may take is 1 divided by this number.
const SHARE: u32 = 10;

/// Counts the backlog of one term's collections.
pub(crate) struct BacklogGauge {
    term: Arc<Term>,
    catalogue: Arc<Catalogue>,
    budget: Arc<Budget>,
    /// Cancelled when the sweep's first round has ended.
    swept: CancellationToken,
    /// The time of each collection's next count.
    again: HashMap<Namespace, Instant>,
}

impl BacklogGauge {
    pub(crate) fn new(
        term: Arc<Term>,
        catalogue: Arc<Catalogue>,
        budget: Arc<Budget>,
        swept: CancellationToken,
    ) -> Self {
        Self { term, catalogue, budget, swept, again: HashMap::new() }
    }

    /// Counts repeatedly until a stop is requested.
    pub(crate) async fn run(mut self) {
        if !self.term.settings.count_totals {
            return;
        }
        // Only a stop ends the counting.
        let _ = self.count_on().await;

        // Removes the figures, because from now on the next owner reports them.
        for namespace in self.again.keys() {
            Metrics::totals(namespace, Totals::default());
        }
    }

    async fn count_on(&mut self) -> Run<()> {
        let interval = self.term.settings.totals_interval;
        // The sweep reads due entries before anything is counted, unless the sweep takes long, or can't
        // begin because there is no broker.
        tokio::select! {
            () = self.swept.cancelled() => {}
            slept = self.term.sleep(interval) => slept?,
        }

        let (term, budget) = (self.term.clone(), self.budget.clone());
        loop {
            let mut turns = Turns::counting(&term, &budget);
            // A stop needn't wait for a count that the server is still working on.
            match term.unless_stopped(self.round(&mut turns)).await? {
                Ok(()) => {}
                Err(Interrupted::Halted) => return Err(Halt),
                Err(Interrupted::Failed(error)) => {
                    let error = classify::text(&error);
                    tracing::debug!(error, "could not list the collections to count");
                }
            }
            term.sleep(interval).await?;
        }
    }

    async fn round(&mut self, turns: &mut Turns<'_>) -> Result<(), Interrupted> {
        let listing = collections::list_all(&self.term, turns).await?;
        let collections = listing.watched(&self.term.plan.coverage);
        if listing.failed.is_empty() {
            unwatchable::report(&self.term, &listing, turns).await?;
            for (gone, _) in self.again.extract_if(|known, _| !collections.contains(known)) {
                Metrics::totals(&gone, Totals::default());
            }
        }

        for namespace in collections {
            let is_early = self.again.get(&namespace).is_some_and(|again| Instant::now() < *again);
            if !is_early {
                self.count(namespace, turns).await?;
            }
        }
        Ok(())
    }

    /// Counts in one collection. If that fails, the collection is reported as not counted.
    async fn count(&mut self, namespace: Namespace, turns: &mut Turns<'_>) -> Run<()> {
        let learned = self.catalogue.learn(&namespace, turns).await;
        let begun = Instant::now();
        let counted = match learned {
            Ok(()) if self.catalogue.holds(&namespace) != Holds::Outboxes => return Ok(()),
            Ok(()) => self.totals(&namespace, turns).await,
            Err(interrupted) => Err(interrupted),
        };

        let totals = match counted {
            Ok(totals) => totals,
            Err(Interrupted::Halted) => return Err(Halt),
            Err(Interrupted::Failed(error)) => {
                let (namespace, error) = (namespace.to_string(), classify::text(&error));
                tracing::debug!(namespace, error, "could not count pending messages");
                // Missing figures are better than outdated ones.
                Totals::default()
            }
        };
        Metrics::totals(&namespace, totals);
        self.again.insert(namespace, Instant::now() + begun.elapsed() * SHARE);
        Ok(())
    }

    async fn totals(&self, namespace: &Namespace, turns: &mut Turns<'_>) -> Result<Totals, Interrupted> {
        let mut totals = Totals::default();
        if let Some(index) = self.catalogue.index(namespace) {
            let hint = || Hint::Name(index.name.clone());
            let now = self.term.mongo.now().await?;
            totals.oldest = Some(self.oldest(namespace, hint(), now, turns).await?);

            if index.partial {
                let (pending, contents) = self.contents(namespace, hint(), now, turns).await?;
                totals.pending = Some(pending);
                totals.contents = Some(contents);
                // The number of dead messages is complete only if counting reached the end of the
                // index.
                let [.., dead] = contents.messages;
                let is_all = pending < MOST.unsigned_abs();
                totals.dead = is_all.then_some(dead);
            }
        }

        if self.catalogue.has_dead_index(namespace) {
            totals.dead = Some(self.dead(namespace, turns).await?);
        }
        if let Some(dead) = totals.dead {
            self.catalogue.counted_dead(namespace, dead);
        }
        Ok(totals)
    }

    /// What the non-empty outboxes contain, and the number of such outboxes.
    async fn contents(
        &self,
        namespace: &Namespace,
        hint: Hint,
        now: DateTime,
        turns: &mut Turns<'_>,
    ) -> Result<(u64, Contents), Interrupted> {
        let Some(counted) = self.aggregate(namespace, by_state(now), hint, turns).await? else {
            return Ok((0, Contents::default()));
        };

        let mut contents = Contents { fullest: number(&counted, "fullest"), ..Contents::default() };
        for (at, state) in STATES.into_iter().enumerate() {
            contents.messages[at] = number(&counted, state);
        }
        if let Ok(since) = counted.get_datetime("oldest") {
            contents.oldest = until(*since, now);
        }
        Ok((number(&counted, "documents"), contents))
    }

    async fn dead(&self, namespace: &Namespace, turns: &mut Turns<'_>) -> Result<u64, Interrupted> {
        let outbox = doc! { "$cond": [{ "$isArray": "$outbox" }, "$outbox", []] };
        let dead = doc! { "$filter": { "input": outbox, "cond": { "$gt": ["$$this.dead_at", Bson::Null] } } };
        let stages = vec![
            doc! { "$match": { "outbox.dead_at": { "$exists": true } } },
            doc! { "$limit": MOST },
            doc! { "$group": { "_id": Bson::Null, "n": { "$sum": { "$size": dead } } } },
        ];
        let by_dead = Hint::Keys(doc! { "outbox.dead_at": 1 });

        let counted = self.aggregate(namespace, stages, by_dead, turns).await?;
        Ok(counted.map_or(0, |counted| number(&counted, "n")))
    }

    async fn aggregate(
        &self,
        namespace: &Namespace,
        stages: Vec<Document>,
        hint: Hint,
        turns: &mut Turns<'_>,
    ) -> Result<Option<Document>, Interrupted> {
        turns.wait().await?;
        let collection = self.term.mongo.collection(namespace);
        let mut cursor = collection.aggregate(stages).hint(hint).max_time(LONGEST).await?;
        if !cursor.advance().await? {
            return Ok(None);
        }
        Ok(Some(cursor.deserialize_current()?))
    }

    /// The age of the oldest message among the documents that have been due for longest.
    async fn oldest(
        &self,
        namespace: &Namespace,
        hint: Hint,
        now: DateTime,
        turns: &mut Turns<'_>,
    ) -> Result<Duration, Interrupted> {
        let fields = doc! {
            "_id": 0, "outbox.available_at": 1, "outbox.created_at": 1, "outbox.claimed_by": 1, "outbox.attempts": 1,
        };

        turns.wait().await?;
        let collection = self.term.mongo.collection(namespace).clone_with_type::<Document>();
        let find = collection.find(due_by(now)).hint(hint).projection(fields);
        let mut cursor = find.limit(ELDERS).max_time(LONGEST).await?;
        let mut oldest = Duration::ZERO;
        while cursor.advance().await? {
            let document = cursor.deserialize_current()?;
            for entry in document.get_array("outbox").into_iter().flatten() {
                let age = entry.as_document().and_then(|entry| age(entry, now));
                oldest = oldest.max(age.unwrap_or_default());
            }
        }
        Ok(oldest)
    }
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

/// The expression for the state of an element, as defined in ARCHITECTURE.md. The state of a malformed element is the
/// empty string.
fn state(now: DateTime) -> Document {
    let due_at = doc! { "$ifNull": ["$$e.available_at", DateTime::MIN] };
    let made = doc! { "$ifNull": ["$$e.created_at", DateTime::MIN] };
    let attempts = doc! { "$gt": ["$$e.attempts", 0] };
    let no_entry = doc! { "$or": [is_not_a("$$e.id", "binData"), is_not_a("$$e.type", "string")] };
    doc! { "$switch": {
        "branches": [
            branch(no_entry, ""),
            branch(doc! { "$eq": [{ "$type": "$$e.dead_at" }, "date"] }, "dead"),
            branch(doc! { "$lte": [due_at.clone(), now] }, "due"),
            branch(doc! { "$eq": [{ "$type": "$$e.claimed_by" }, "string"] }, "claimed"),
            branch(attempts, "retrying"),
            // The message was due at its creation, but its writer's clock is ahead.
            branch(doc! { "$lte": [due_at, made] }, "due"),
        ],
        "default": "scheduled",
    } }
}

fn is_not_a(field: &str, kind: &str) -> Document {
    doc! { "$ne": [{ "$type": field }, kind] }
}

fn branch(case: Document, then: &str) -> Document {
    doc! { "case": case, "then": then }
}

/// When a message began to wait: its creation or, if it was scheduled, its due time.
fn since(now: DateTime) -> Document {
    let is_past = doc! { "$lte": ["$$e.available_at", now] };
    let due_at = doc! { "$cond": [is_past, "$$e.available_at", Bson::Null] };
    let was_tried = doc! { "$or": [
        { "$eq": [{ "$type": "$$e.claimed_by" }, "string"] },
        { "$gt": ["$$e.attempts", 0] },
        { "$gt": ["$$e.claims", 0] },
    ] };
    let dates = doc! { "made": "$$e.created_at", "due": due_at };
    // `$min` and `$max` ignore missing and null values.
    let waits =
        doc! { "$cond": [was_tried, { "$min": ["$$made", "$$due"] }, { "$max": ["$$made", "$$due"] }] };
    doc! { "$let": { "vars": dates, "in": waits } }
}

/// A number in a reply; 0 if the reply doesn't contain it.
fn number(counted: &Document, name: &str) -> u64 {
    let number = counted.get_i64(name).or_else(|_| counted.get_i32(name).map(i64::from));
    number.ok().and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

/// The age of a due entry: the time since its creation or, if it was scheduled, since its due time.
fn age(entry: &Document, now: DateTime) -> Option<Duration> {
    let due = *entry.get_datetime("available_at").ok()?;
    if due > now {
        return None;
    }
    let made = entry.get_datetime("created_at").copied().unwrap_or(due);
    let attempts = entry.get_i32("attempts").unwrap_or(0);

    let was_tried = entry.contains_key("claimed_by") || attempts > 0;
    let from = if was_tried { made.min(due) } else { made.max(due) };
    Some(until(from, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduled_message_ages_from_its_due_date() {
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

//! Compares the rescuer's queries and filters, which the server executes, with the rescuer's own decision whether a document
//! needs a command. No query or filter may leave out a document that needs a command.

use std::collections::BTreeSet;

use document_outbox::{DeliveryOrder, internal::read_outbox};
use futures::{StreamExt, stream};
use mongodb::{
    Collection,
    bson::{Bson, DateTime, Document, doc},
};
use outbox_rescuer::{
    Settings,
    internal::{Moment, Verdict, due_by, judge, undated},
    pipelines,
};
use proptest::prelude::*;

use crate::{
    elements::{MINUTE, Part, any_parts, outbox},
    generated::any_order,
    server::{Server, generate},
};

const CASES: usize = 1_000;
const AT_ONCE: usize = 16;
const DELAY: std::time::Duration = std::time::Duration::from_secs(15);

type Ids = BTreeSet<i32>;

/// *If the sweep would rescue a document for an entry with a date, the query for due entries finds the document. If the entry has
/// no date, the query for entries without a date finds the document. Neither query finds a document in which no entry is alive.*
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweep_asks_for_every_document_it_would_rescue() {
    let server = Server::open().await;
    let now = server.now().await;
    let cases: Vec<_> = generate(CASES, (any_parts(), any_order()))
        .into_iter()
        .map(|(parts, order)| (outbox(parts, now), order))
        .collect();
    server.insert(cases.iter().map(|(outbox, _)| doc! { "outbox": outbox.clone() })).await;
    let due = found(&server, due_by(now)).await;
    let without_date = found(&server, undated()).await;

    let mut wanted = 0;
    for ((outbox, order), id) in cases.iter().zip(0..) {
        let verdict = verdict(outbox, *order, Moment::sweeping(now, DELAY));
        if let Some(head) = &verdict.work {
            wanted += 1;
            let asked = if head.is_undated() { &without_date } else { &due };
            assert!(asked.contains(&id), "{head:?} of {outbox:#?}");
        }
        assert!(!verdict.undated || without_date.contains(&id), "{outbox:#?}");
        // MongoDB also searches an array inside the outbox, so the sweep's query may find a document that needs no command.
        let has_living = outbox.iter().any(|element| match element {
            Bson::Document(entry) => !entry.contains_key("dead_at"),
            Bson::Array(_) => true,
            _ => false,
        });
        assert!(has_living || !(due.contains(&id) || without_date.contains(&id)), "{outbox:#?}");
    }
    assert!(wanted > CASES / 10, "the sweep would rescue only {wanted} documents");
    server.close().await;
}

async fn found(server: &Server, filter: Document) -> Ids {
    let found = server.orders().find(filter).projection(doc! { "_id": 1 }).await.unwrap();
    found.map(|document| document.unwrap().get_i32("_id").unwrap()).collect().await
}

fn verdict(outbox: &[Bson], order: DeliveryOrder, moment: Moment) -> Verdict {
    judge(read_outbox(Some(&Bson::from(outbox.to_vec()))), order, moment)
}

/// A change to a document with an outbox.
#[derive(Debug, Clone)]
enum Change {
    /// Changes a field outside the outbox.
    Elsewhere,
    Push(Vec<Part>),
    Replace(Vec<Part>),
    /// Removes an entry, as a clear does.
    Pull(usize),
    /// Claims an entry. A worker writes the changes `Claim`, `Fail`, `Die` and `Release`.
    Claim(usize),
    Fail(usize),
    Die(usize),
    Release(usize),
    /// Removes a field of an entry. In production, a person makes the changes from `Unset` to `Empty` by hand.
    Unset(usize, &'static str),
    Set(usize, &'static str, Bson),
    Overwrite(usize, Part),
    Swap,
    Empty,
}

fn any_change() -> impl Strategy<Value = Change> {
    let place = || 0..4usize;
    let judged = prop::sample::select(vec![
        "available_at",
        "claimed_by",
        "attempts",
        "claims",
        "dead_at",
        "via",
        "type",
    ]);
    let value = prop_oneof![
        Just(Bson::Null),
        Just(Bson::from("t")),
        Just(Bson::from(0)),
        Just(Bson::from(3)),
        Just(Bson::from(Vec::<Bson>::new())),
        Just(Bson::from(DateTime::from_millis(0))),
    ];
    let part = || any_parts().prop_filter_map("an element", |mut parts| parts.pop());
    prop_oneof![
        1 => Just(Change::Elsewhere),
        1 => any_parts().prop_map(Change::Push),
        1 => any_parts().prop_map(Change::Replace),
        1 => place().prop_map(Change::Pull),
        1 => place().prop_map(Change::Claim),
        1 => place().prop_map(Change::Fail),
        2 => place().prop_map(Change::Die),
        1 => place().prop_map(Change::Release),
        2 => (place(), judged.clone()).prop_map(|(place, field)| Change::Unset(place, field)),
        2 => (place(), judged, value).prop_map(|(place, field, value)| Change::Set(place, field, value)),
        1 => (place(), part()).prop_map(|(place, part)| Change::Overwrite(place, part)),
        1 => Just(Change::Swap),
        1 => Just(Change::Empty),
    ]
}

/// *If a document needs a command after a change and needed none before, the stream shows the change, or the entry that needs the
/// command has a date by which the sweep finds the document. The stream does not show claims and failures, because these changes
/// would double the length of the stream.*
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_shows_every_change_that_makes_work() {
    let server = Server::open().await;
    let now = server.now().await;
    let orders = server.orders();
    let cases = generate(CASES, (any_parts(), any_change(), any_order()));
    let before: Vec<Vec<Bson>> = cases.iter().map(|(parts, ..)| outbox(parts.clone(), now)).collect();
    server.insert(before.iter().map(|outbox| doc! { "outbox": outbox.clone() })).await;

    let watch = vec![orders.namespace().to_string().parse().unwrap()];
    let stages = pipelines(&Settings::new(watch)).remove(0);
    let changes = orders.watch().pipeline(stages).await.unwrap().with_type::<Document>();
    let made = cases
        .iter()
        .zip(&before)
        .zip(0i32..)
        .map(async |(((_, change, _), before), id)| apply(&orders, id, change, before, now).await);
    let made: Vec<bool> = stream::iter(made).buffered(AT_ONCE).collect().await;
    orders.insert_one(doc! { "_id": -1, "outbox": ["the last"] }).await.unwrap();
    let shown: Ids = changes
        .map(|change| change.unwrap().get_document("key").unwrap().get_i32("_id").unwrap())
        .take_while(|id| std::future::ready(*id != -1))
        .collect()
        .await;

    let mut needed = 0;
    for (((_, change, order), before), id) in cases.iter().zip(&before).zip(0i32..) {
        let after = server.outbox(id).await;
        let moment = Moment::following(now, DELAY);
        let (had, has) = (verdict(before, *order, moment).work, verdict(&after, *order, moment).work);
        let (is_shown, says) =
            (shown.contains(&id), || format!("{change:?}\n  before {before:#?}\n  after {after:#?}"));
        if let (None, Some(head)) = (&had, &has) {
            needed += 1;
            assert!(is_shown || !head.is_undated(), "{}", says());
        }
        if matches!(change, Change::Claim(_) | Change::Fail(_) | Change::Elsewhere | Change::Empty) {
            assert!(!is_shown, "{}", says());
        }
    }
    let made = made.into_iter().filter(|made| *made).count();
    assert!(made > CASES / 3 && needed > CASES / 50, "{made} changes, {needed} of them made work");
    server.close().await;
}

/// Makes the change. Returns false if there is nothing to change.
async fn apply(
    orders: &Collection<Document>,
    id: i32,
    change: &Change,
    before: &[Bson],
    now: DateTime,
) -> bool {
    let one = doc! { "_id": id };
    let later = DateTime::from_millis(now.timestamp_millis() + 60 * MINUTE);
    let at = |place: &usize, field: &str| format!("outbox.{place}.{field}");
    // The server refuses to set a field of an element that is not a document.
    let is_entry = |place: &usize| before.get(*place).is_some_and(|element| element.as_document().is_some());
    let update = match change {
        Change::Elsewhere => doc! { "$set": { "other": 1 } },
        Change::Empty => doc! { "$set": { "outbox": [] } },
        Change::Push(parts) => doc! { "$push": { "outbox": { "$each": outbox(parts.clone(), now) } } },
        Change::Overwrite(place, part) => {
            doc! { "$set": { format!("outbox.{place}"): outbox(vec![part.clone()], now).remove(0) } }
        }
        Change::Replace(parts) => {
            let whole = doc! { "outbox": outbox(parts.clone(), now) };
            return orders.replace_one(one, whole).await.unwrap().modified_count > 0;
        }
        Change::Swap => {
            let swapped = doc! { "$reverseArray": "$outbox" };
            return orders
                .update_one(one, vec![doc! { "$set": { "outbox": swapped } }])
                .await
                .unwrap()
                .modified_count
                > 0;
        }
        Change::Pull(place)
        | Change::Claim(place)
        | Change::Fail(place)
        | Change::Die(place)
        | Change::Release(place)
        | Change::Unset(place, _)
        | Change::Set(place, ..)
            if !is_entry(place) =>
        {
            return false;
        }
        Change::Pull(place) => {
            let id = before[*place].as_document().unwrap().get("id").cloned();
            doc! { "$pull": { "outbox": { "id": id } } }
        }
        Change::Claim(place) => doc! {
            "$set": { at(place, "claimed_by"): "p/1", at(place, "available_at"): later },
            "$inc": { at(place, "claims"): 1 },
        },
        Change::Fail(place) => doc! {
            "$set": { at(place, "available_at"): later, at(place, "last_error"): "t" },
            "$inc": { at(place, "attempts"): 1 },
            "$unset": { at(place, "claimed_by"): "" },
        },
        Change::Die(place) => doc! {
            "$set": { at(place, "dead_at"): now, at(place, "dead_reason"): "permanent", at(place, "last_error"): "p" },
            "$inc": { at(place, "attempts"): 1 },
            "$unset": { at(place, "available_at"): "", at(place, "claimed_by"): "" },
        },
        Change::Release(place) => {
            doc! { "$unset": { at(place, "available_at"): "", at(place, "claimed_by"): "" } }
        }
        Change::Unset(place, field) => doc! { "$unset": { at(place, field): "" } },
        Change::Set(place, field, value) => doc! { "$set": { at(place, field): value } },
    };
    orders.update_one(one, update).await.is_ok_and(|updated| updated.modified_count > 0)
}

//! Properties of a worker's pass over generated documents, and of saves of such documents. The server executes the claims, clears,
//! failures, deaths and releases. The tests compare the stored result with the result of a simple simulation.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{
    Aggregate, DeliveryOrder, DocumentRef, InlineDispatcher, Message, Outbox, RetryPolicy, Store,
    deliver::{Answer, Deliver, Envelope, Outcome},
    dispatch::{Processor, ProcessorSettings},
    internal::{Entry, Rules, Settlement, Slot, deliverable, due_again, settlement},
};
use futures::{StreamExt, stream};
use mongodb::bson::{Bson, DateTime, Document, Uuid, doc};
use outbox_rescuer::CancellationToken;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    elements::{MINUTE, any_parts, bytes, outbox, slots},
    generated::{any_bson, any_order},
    server::{Server, generate},
};

const CASES: usize = 400;
const AT_ONCE: usize = 16;
/// A placeholder in expected entries: it equals any date at or after the beginning of the test.
const JUST_NOW: DateTime = DateTime::from_millis(i64::MAX);
/// A placeholder in expected entries: it equals any date that is more than ten minutes after the beginning of the test.
const LATER: DateTime = DateTime::from_millis(i64::MAX - 1);

fn retry() -> RetryPolicy {
    RetryPolicy::default().with(|retry| {
        retry.quick_tries = 0;
        retry.backoff_min = Duration::from_hours(2);
        retry.backoff_max = Duration::from_hours(2);
    })
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Delivered),
        2 => Just(Outcome::Transient("t".into())),
        1 => Just(Outcome::Unroutable("u".into())),
        1 => Just(Outcome::Permanent("p".into())),
        1 => Just(Outcome::Unavailable("a".into())),
    ];
    let handlers = prop::option::weighted(0.2, Just("h2".to_owned()));
    (outcome, handlers)
        .prop_map(|(outcome, handler)| Answer { outcome, delivered_to: handler.into_iter().collect() })
}

/// A deliverer that answers for each message what the test case prescribes.
struct Scripted(HashMap<(i32, Uuid), Answer>);

#[async_trait]
impl Deliver for Scripted {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let answer = |envelope: &Envelope| {
            let id = Uuid::from_bytes(envelope.id.into_bytes());
            self.0[&(envelope.document.id().as_i32().unwrap(), id)].clone()
        };
        window.iter().map(answer).collect()
    }
}

/// *The writes of a delivery change only the entries that were delivered, and only their known fields, as the outcomes require. All
/// other elements of the array stay, in their order.*
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_writes_only_what_its_outcomes_say() {
    let server = Server::open().await;
    let now = server.now().await;
    let answers = prop::collection::vec(any_answer(), 8);
    let cases: Vec<_> = generate(CASES, (any_parts(), answers, any_order()))
        .into_iter()
        .map(|(parts, answers, ordering)| Case::of(outbox(parts, now), answers, ordering))
        .collect();
    server.insert(cases.iter().map(|case| doc! { "unknown": 1, "outbox": case.before.clone() })).await;

    let script = cases.iter().zip(0..).flat_map(|(case, number)| {
        case.answers.iter().map(move |(id, answer)| ((number, *id), answer.clone()))
    });
    let settings = ProcessorSettings::default().with(|settings| {
        settings.retry = retry();
        settings.claim_lease = Duration::from_mins(10);
        settings.state_database = server.database.name().into();
    });
    let worker = Processor::new(server.client.clone(), Arc::new(Scripted(script.collect())), settings);
    let passes = cases.iter().zip(0i32..).map(async |(case, number)| {
        let document = DocumentRef::by_id(server.orders().namespace(), number);
        worker.process(&document, case.ordering, &CancellationToken::new()).await.unwrap();
        let expected = case.after_a_pass(now);
        let found = server.outbox(number).await;
        assert!(
            is_as_expected(&expected, &found, now),
            "{case:#?}\n  expected {expected:#?}\n  found {found:#?}"
        );
    });
    stream::iter(passes).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    server.close().await;
}

#[derive(Debug)]
struct Case {
    before: Vec<Bson>,
    ordering: DeliveryOrder,
    answers: BTreeMap<Uuid, Answer>,
}

impl Case {
    fn of(before: Vec<Bson>, answers: Vec<Answer>, ordering: DeliveryOrder) -> Self {
        let ids: Vec<Uuid> = slots(&before).iter().filter_map(Slot::entry).map(|entry| entry.id).collect();
        Self { before, ordering, answers: ids.into_iter().zip(answers).collect() }
    }

    /// Simulates a pass and returns the outbox after it. The pass claims and delivers due messages in their order until one of
    /// them stops the pass.
    fn after_a_pass(&self, now: DateTime) -> Vec<Bson> {
        let mut array = Array(self.before.clone());
        loop {
            let slots = slots(&array.0);
            let rules = Rules { now, ordering: self.ordering, limit: 100, serves: &|via| via.is_none() };
            let plan = deliverable(&slots, rules);
            if let Some(crashed) = plan.crashed {
                let error =
                    format!("{} claims expired without an outcome", crashed.claims - crashed.attempts);
                array.die(crashed.id, "crashed", &error);
                continue;
            }
            if plan.entries.is_empty() || !self.deliver(&mut array, &plan.entries, now) {
                return array.0;
            }
        }
    }

    /// Applies the outcomes of one claim. Returns false if the pass ends with this claim.
    fn deliver(&self, array: &mut Array, claimed: &[&Entry], now: DateTime) -> bool {
        let is_ordered = self.ordering != DeliveryOrder::Unordered;
        let (mut stopped, mut unavailable) = (false, false);
        let mut released: Vec<&Entry> = Vec::new();
        for entry in claimed {
            array.count(entry.id, "claims", 1);
            if stopped && is_ordered {
                released.push(entry);
                continue;
            }
            let Answer { outcome, mut delivered_to } = self.answers[&entry.id].clone();
            if delivered_to.is_empty() && outcome != Outcome::Delivered {
                delivered_to.clone_from(&entry.delivered_to);
            }
            match settlement(outcome, entry, &retry()) {
                Settlement::Clear => array.0.retain(|element| !has_id(element, entry.id)),
                Settlement::Fail { error, .. } => {
                    array.fail(entry.id, &error);
                    array.remember(entry.id, &delivered_to);
                    stopped = true;
                }
                Settlement::Die { reason, error } => {
                    array.die(entry.id, reason.as_str(), &error);
                    array.count(entry.id, "attempts", 1);
                    array.remember(entry.id, &delivered_to);
                    stopped |= self.ordering == DeliveryOrder::DeadBlocks;
                }
                Settlement::Release { .. } if delivered_to.is_empty() => {
                    released.push(entry);
                    (stopped, unavailable) = (true, true);
                }
                Settlement::Release { .. } => {
                    array.release(&[entry], now);
                    array.remember(entry.id, &delivered_to);
                    (stopped, unavailable) = (true, true);
                }
            }
        }
        array.release(&released, now);
        !(unavailable || stopped && is_ordered)
    }
}

fn has_id(element: &Bson, id: Uuid) -> bool {
    element.as_document().and_then(|entry| entry.get("id")) == Some(&Bson::from(id))
}

/// A simulated outbox, in which each write changes the elements that have a given id.
struct Array(Vec<Bson>);

impl Array {
    fn each(&mut self, id: Uuid, change: impl Fn(&mut Document)) {
        for element in self.0.iter_mut().filter(|element| has_id(element, id)) {
            change(element.as_document_mut().unwrap());
        }
    }

    fn count(&mut self, id: Uuid, field: &str, by: i64) {
        self.each(id, |entry| {
            let count = entry.get(field).map_or(0, whole);
            entry.insert(field, count + by);
        });
    }

    fn fail(&mut self, id: Uuid, error: &str) {
        self.count(id, "attempts", 1);
        self.each(id, |entry| {
            entry.remove("claimed_by");
            entry.extend(doc! { "available_at": LATER, "last_error": error });
        });
    }

    fn die(&mut self, id: Uuid, reason: &str, error: &str) {
        self.each(id, |entry| {
            entry.remove("claimed_by");
            entry.remove("available_at");
            entry.extend(doc! { "dead_at": JUST_NOW, "dead_reason": reason, "last_error": error });
        });
    }

    fn remember(&mut self, id: Uuid, delivered_to: &[String]) {
        if !delivered_to.is_empty() {
            self.each(id, |entry| _ = entry.insert("delivered_to", delivered_to));
        }
    }

    fn release(&mut self, released: &[&Entry], now: DateTime) {
        for (due, ids) in due_again(released, now) {
            for id in ids {
                self.count(id, "claims", -1);
                self.each(id, |entry| {
                    entry.remove("claimed_by");
                    match due {
                        Some(due) => _ = entry.insert("available_at", due),
                        None => _ = entry.remove("available_at"),
                    }
                });
            }
        }
    }
}

/// Returns a count that is stored as any numeric type.
fn whole(value: &Bson) -> i64 {
    match value {
        Bson::Int32(number) => i64::from(*number),
        Bson::Int64(number) => *number,
        #[allow(clippy::cast_possible_truncation, reason = "the count is small and whole")]
        Bson::Double(number) => *number as i64,
        other => panic!("{other} is not a count"),
    }
}

fn is_as_expected(expected: &[Bson], found: &[Bson], began: DateTime) -> bool {
    expected.len() == found.len()
        && expected.iter().zip(found).all(|(expected, found)| match (expected, found) {
            (Bson::Document(expected), Bson::Document(found)) => is_same_entry(expected, found, began),
            (expected, found) => bytes(expected) == bytes(found),
        })
}

fn is_same_entry(expected: &Document, found: &Document, began: DateTime) -> bool {
    expected.len() == found.len()
        && expected.iter().all(|(name, expected)| match (name.as_str(), expected, found.get(name)) {
            (_, Bson::DateTime(JUST_NOW), Some(Bson::DateTime(at))) => *at >= began,
            (_, Bson::DateTime(LATER), Some(Bson::DateTime(at))) => {
                at.timestamp_millis() > began.timestamp_millis() + 10 * MINUTE
            }
            ("claims" | "attempts", Bson::Int64(expected), Some(found)) => whole(found) == *expected,
            (_, expected, Some(found)) => bytes(expected) == bytes(found),
            (_, _, None) => false,
        })
}

/// An aggregate that declares only one of the fields of the stored document.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    #[serde(rename = "_id")]
    id: i32,
    total: i64,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Known {
    type Id = i32;

    fn id(&self) -> &i32 {
        &self.id
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Any(Bson);

impl Message for Any {
    const TYPE: &'static str = "any";
}

/// The parts of a message that the test sends.
#[derive(Debug, Clone)]
struct Sent {
    payload: Bson,
    headers: BTreeMap<String, String>,
    after: Option<Duration>,
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let headers = prop::collection::btree_map("[a-z]{1,4}", ".{0,4}", 0..3);
    let after = prop::option::of((1..100u64).prop_map(Duration::from_hours));
    (any_bson(), headers, after).prop_map(|(payload, headers, after)| Sent { payload, headers, after })
}

/// *A save appends its messages and sets the fields that changed. A reader gets the messages as they were sent. Entries and
/// fields of other writers stay as they are.*
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_appends_what_is_read_as_it_was_sent() {
    let server = Server::open().await;
    let now = server.now().await;
    let sent = prop::collection::vec(any_sent(), 0..4);
    let cases = generate(CASES, (any_parts(), any_bson(), sent, any::<bool>()));
    let before: Vec<_> = cases.iter().map(|(parts, ..)| outbox(parts.clone(), now)).collect();
    server
        .insert(cases.iter().zip(&before).map(
            |((_, unknown, ..), outbox)| doc! { "unknown": unknown, "total": 1i64, "outbox": outbox.clone() },
        ))
        .await;

    let store = Store::<Known>::new(server.orders(), &InlineDispatcher::off(&server.client));
    let saves =
        cases.iter().zip(&before).zip(0i32..).map(async |(((_, unknown, sent, changes), before), id)| {
            let mut known = store.load(&id).await.unwrap().unwrap();
            known.total += i64::from(*changes);
            for message in sent {
                send(&mut known.outbox, message);
            }
            assert!(store.save(&mut known).await.unwrap().is_current());

            let stored = Document::try_from(server.stored(id).await.as_ref()).unwrap();
            assert_eq!(bytes(&stored["unknown"]), bytes(unknown));
            assert_eq!(stored.get_i64("total").unwrap(), 1 + i64::from(*changes));
            let after = stored.get_array("outbox").unwrap();
            assert_eq!(after.len(), before.len() + sent.len());
            let (old, new) = after.split_at(before.len());
            assert!(old.iter().map(bytes).eq(before.iter().map(bytes)), "{before:#?}\n{old:#?}");
            let entries = slots(new);
            assert_eq!(entries.len(), sent.len());
            for (slot, sent) in entries.iter().zip(sent) {
                is_read_as_sent(slot.entry().expect("it is readable"), sent, now);
            }
        });
    stream::iter(saves).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    server.close().await;
}

fn send(outbox: &mut Outbox, Sent { payload, headers, after }: &Sent) {
    let message = Any(payload.clone());
    let sent = match after {
        Some(after) => outbox.send_after(message, *after),
        None => outbox.send(message),
    };
    for (name, value) in headers {
        sent.header(name, value);
    }
}

fn is_read_as_sent(entry: &Entry, sent: &Sent, began: DateTime) {
    assert_eq!(bytes(&entry.payload), bytes(&sent.payload));
    assert_eq!((&entry.headers, entry.message_type.as_str()), (&sent.headers, Any::TYPE));
    assert_eq!((entry.attempts, entry.claims, &entry.claimed_by, &entry.dead), (0, 0, &None, &None));
    let (made, due) = (entry.created_at.unwrap(), entry.available_at.unwrap());
    assert!(made >= began);
    let wait = i64::try_from(sent.after.unwrap_or_default().as_millis()).unwrap();
    assert_eq!(due.timestamp_millis() - made.timestamp_millis(), wait);
}

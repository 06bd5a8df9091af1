//! A race on a real MongoDB: saves that cancel, reschedule and replace messages, while other processes claim, deliver, fail,
//! release and clear the same messages, and a foreign program pushes elements of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{
    Aggregate, DeliveryOrder, DocumentRef, Due, InlineDispatcher, Message, Outbox, RetryPolicy,
    RevisionOutcome, Store,
    deliver::{Answer, Deliver, Envelope, Outcome},
    dispatch::{Processor, ProcessorSettings},
    store::Receipt,
};
use futures::future::join_all;
use mongodb::bson::{Bson, Document, Uuid, doc};
use outbox_rescuer::CancellationToken;
use parking_lot::Mutex;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    elements::bytes,
    server::{Server, generate},
};

const DOCUMENTS: usize = 12;
const STEPS: usize = 40;
const FAR: Duration = Duration::from_hours(1_000);
/// A duration that no claim of this test lasts. A message whose claim ends during its delivery could be delivered and still
/// be there.
const LEASE: Duration = Duration::from_mins(10);

#[derive(Debug, Serialize, Deserialize)]
struct Saga {
    #[serde(rename = "_id")]
    id: i32,
    steps: i64,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Saga {
    type Id = i32;

    fn id(&self) -> &i32 {
        &self.id
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Step(i64);

impl Message for Step {
    const TYPE: &'static str = "step";
}

/// One action of a saver. A target is the place of a message among those that are known.
#[derive(Debug, Clone)]
enum Action {
    Send { is_due: bool },
    SendKeyed { key: u8, is_due: bool },
    Cancel { target: prop::sample::Index },
    Reschedule { target: prop::sample::Index, is_due: bool },
}

fn any_action() -> impl Strategy<Value = Vec<Action>> {
    let target = any::<prop::sample::Index>;
    let action = prop_oneof![
        3 => any::<bool>().prop_map(|is_due| Action::Send { is_due }),
        2 => (0..2u8, any::<bool>()).prop_map(|(key, is_due)| Action::SendKeyed { key, is_due }),
        4 => target().prop_map(|target| Action::Cancel { target }),
        2 => (target(), any::<bool>()).prop_map(|(target, is_due)| Action::Reschedule { target, is_due }),
    ];
    prop::collection::vec(action, 1..4)
}

/// What is known of the messages of one document.
#[derive(Debug, Default)]
struct Known {
    sent: Vec<uuid::Uuid>,
    pushed: BTreeSet<uuid::Uuid>,
    delivered: BTreeSet<uuid::Uuid>,
    /// Messages that left the outbox by a save.
    removed: BTreeSet<uuid::Uuid>,
    not_there: BTreeSet<uuid::Uuid>,
    malformed: Vec<Bson>,
    /// Number of revisions, by outcome.
    outcomes: BTreeMap<&'static str, usize>,
    violations: Vec<String>,
}

type Ledger = Arc<BTreeMap<i32, Mutex<Known>>>;

/// Records the messages. Every fourth one fails, and every seventh one finds the destination unavailable.
struct Recording {
    ledger: Ledger,
    tried: Mutex<usize>,
}

#[async_trait]
impl Deliver for Recording {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let mut answers = Vec::new();
        for envelope in window {
            let tried = {
                let mut tried = self.tried.lock();
                *tried += 1;
                *tried
            };
            let document = envelope.document.id().as_i32().unwrap();
            if self.ledger[&document].lock().removed.contains(&envelope.id) {
                let text = format!("{} is delivered after it was removed", envelope.id);
                self.ledger[&document].lock().violations.push(text);
            }
            tokio::task::yield_now().await;

            let outcome = match tried {
                _ if tried % 4 == 0 => Outcome::Transient("t".into()),
                _ if tried % 7 == 0 => Outcome::Unavailable("a".into()),
                _ => Outcome::Delivered,
            };
            if outcome == Outcome::Delivered {
                self.ledger[&document].lock().delivered.insert(envelope.id);
            }
            answers.push(outcome.into());
        }
        answers
    }
}

/// *A message that a save reports as cancelled or replaced is delivered by no process. All other messages are delivered, or are
/// still in the outbox. Elements of other programs stay as they are.*
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_race_deliveries_and_lose_no_message() {
    let server = Server::open().await;
    server.insert((0..DOCUMENTS).map(|_| doc! { "steps": 0i64, "outbox": [] })).await;
    let documents: Vec<i32> = (0..).take(DOCUMENTS).collect();
    let ledger: Ledger = Arc::new(documents.iter().map(|id| (*id, Mutex::default())).collect());
    let deliver = Arc::new(Recording { ledger: ledger.clone(), tried: Mutex::default() });
    let retry = RetryPolicy::default().with(|retry| {
        (retry.quick_tries, retry.max_attempts) = (0, 1_000);
        (retry.backoff_min, retry.backoff_max) = (Duration::from_millis(1), Duration::from_millis(2));
    });

    let inline = InlineDispatcher::builder(&server.client)
        .inline_lease(LEASE)
        .retry(retry.clone())
        .deliver_to_shared(deliver.clone());
    let store = Store::<Saga>::new(server.orders(), &inline);
    let settings = ProcessorSettings::default().with(|settings| {
        settings.retry = retry.clone();
        settings.claim_lease = LEASE;
        settings.state_database = server.database.name().into();
    });
    let worker = Processor::new(server.client.clone(), deliver, settings);

    let plans = generate(2 * DOCUMENTS, prop::collection::vec(any_action(), STEPS));
    let over = CancellationToken::new();
    let savers = plans.iter().enumerate().map(|(number, plan)| {
        let id = documents[number % DOCUMENTS];
        save_all(&store, id, plan, &ledger[&id])
    });
    let savers = async {
        join_all(savers).await;
        over.cancel();
    };
    let workers = documents.iter().map(|id| work(&server, &worker, *id, &over));
    let pushers = documents.iter().map(|id| push(&server, *id, &ledger[id], &over));
    tokio::join!(savers, join_all(workers), join_all(pushers));
    inline.close(Duration::MAX).await;

    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for id in documents {
        let outbox = server.outbox(id).await;
        let known = ledger[&id].lock();
        check(&outbox, &known);
        for (outcome, count) in &known.outcomes {
            *outcomes.entry(outcome).or_default() += count;
        }
    }
    println!("{outcomes:?}");
    for outcome in ["cancelled", "replaced", "rescheduled", "not_there"] {
        assert!(outcomes[outcome] > 0, "{outcomes:?}");
    }
    server.close().await;
}

async fn save_all(store: &Store<Saga>, id: i32, plan: &[Vec<Action>], known: &Mutex<Known>) {
    for actions in plan {
        let targets: Vec<uuid::Uuid> = {
            let known = known.lock();
            known.sent.iter().chain(&known.pushed).copied().collect()
        };
        let updated = store.update(&id, |saga| {
            saga.steps += 1;
            for action in actions {
                act(&mut saga.outbox, saga.steps, action, &targets);
            }
        });
        let receipt = updated.await.unwrap().receipt.expect("the save was written");
        note(&receipt, &mut known.lock());
    }
}

fn act(outbox: &mut Outbox, step: i64, action: &Action, targets: &[uuid::Uuid]) {
    let when = |is_due: &bool| if *is_due { Due::Now } else { Due::After(FAR) };
    match action {
        Action::Send { is_due } => _ = outbox.send(Step(step)).when(when(is_due)),
        Action::SendKeyed { key, is_due } => {
            outbox.send_keyed(Step(step), key.to_string()).when(when(is_due));
        }
        Action::Cancel { target } if !targets.is_empty() => outbox.cancel(*target.get(targets)),
        Action::Reschedule { target, is_due } if !targets.is_empty() => {
            outbox.reschedule(*target.get(targets), when(is_due));
        }
        Action::Cancel { .. } | Action::Reschedule { .. } => {}
    }
}

/// Records a save's receipt, and what contradicts it.
fn note(receipt: &Receipt, known: &mut Known) {
    known.sent.extend(&receipt.messages);
    for revised in &receipt.revisions {
        let message = revised.message;
        *known.outcomes.entry(revised.outcome.as_str()).or_default() += 1;
        match revised.outcome {
            RevisionOutcome::Cancelled | RevisionOutcome::Replaced => {
                if known.delivered.contains(&message) {
                    known.violations.push(format!("{message} was delivered and then removed"));
                }
                if !known.removed.insert(message) {
                    known.violations.push(format!("{message} was removed twice"));
                }
            }
            RevisionOutcome::NotThere => _ = known.not_there.insert(message),
            RevisionOutcome::Rescheduled | RevisionOutcome::TooLate => {}
            other => known.violations.push(format!("{message} is {other:?}")),
        }
    }
}

/// Delivers what is due, again and again.
async fn work(server: &Server, worker: &Processor, id: i32, over: &CancellationToken) {
    let document = DocumentRef::by_id(server.orders().namespace(), id);
    while !over.is_cancelled() {
        worker.process(&document, DeliveryOrder::Ordered, &CancellationToken::new()).await.unwrap();
    }
}

/// Pushes messages, some of them twice, and malformed elements.
async fn push(server: &Server, id: i32, known: &Mutex<Known>, over: &CancellationToken) {
    for number in 0i32.. {
        if over.is_cancelled() || number > 60 {
            return;
        }
        let message = Uuid::new();
        let entry =
            doc! { "id": message, "type": "step", "payload": 0i64, "key": number, "unknown": "$outbox" };
        let malformed = Bson::from(doc! { "id": number, "$add": ["$a", f64::NAN] });
        let pushed: Vec<Bson> = match number % 3 {
            0 => vec![entry.clone().into(), entry.into()],
            1 => vec![entry.into()],
            _ => vec![malformed.clone()],
        };
        let push = doc! { "$push": { "outbox": { "$each": pushed } } };
        server.orders().update_one(doc! { "_id": id }, push).await.unwrap();
        let mut known = known.lock();
        if number % 3 == 2 {
            known.malformed.push(malformed);
        } else {
            let message = uuid::Uuid::from_bytes(message.bytes());
            known.pushed.insert(message);
        }
    }
}

fn check(stored: &[Bson], known: &Known) {
    assert!(known.violations.is_empty(), "{:#?}", known.violations);
    let entries: Vec<&Document> = stored.iter().filter_map(Bson::as_document).collect();
    let there: BTreeSet<uuid::Uuid> = entries.iter().filter_map(|entry| id_of(entry)).collect();

    for message in known.sent.iter().chain(&known.pushed) {
        let (is_there, is_removed) = (there.contains(message), known.removed.contains(message));
        let is_delivered = known.delivered.contains(message);
        let ends = u8::from(is_there) + u8::from(is_removed) + u8::from(is_delivered);
        assert_eq!(ends, 1, "{message}: there {is_there}, removed {is_removed}, delivered {is_delivered}");
    }
    for message in &known.not_there {
        assert!(!there.contains(message), "{message} is there");
    }

    let malformed: Vec<_> = stored.iter().filter(|element| is_malformed(element)).map(bytes).collect();
    assert!(malformed.iter().eq(known.malformed.iter().map(bytes).collect::<Vec<_>>().iter()), "{stored:#?}");
}

fn is_malformed(element: &Bson) -> bool {
    element.as_document().is_some_and(|entry| id_of(entry).is_none())
}

fn id_of(entry: &Document) -> Option<uuid::Uuid> {
    match entry.get("id") {
        Some(Bson::Binary(id)) => Some(uuid::Uuid::from_bytes(id.to_uuid().unwrap().bytes())),
        _ => None,
    }
}

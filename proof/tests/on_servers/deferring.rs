//! Tests saves with deferred clears, between writes of other programs. The messages of such a save stay in the outbox for a while
//! after their delivery, and the next save may replace the whole array.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{
    Aggregate, InlineDispatcher, Loaded, Message, Mode, Outbox, Store,
    deliver::{Answer, Deliver, Envelope, Outcome},
};
use futures::{StreamExt, stream};
use mongodb::bson::{Bson, Uuid, doc};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    elements::bytes,
    generated::any_bson,
    server::{Server, generate},
};

const CASES: usize = 200;
const AT_ONCE: usize = 16;
/// A duration so long that no test reaches its end.
const FOR_EVER: Duration = Duration::from_mins(10);

/// A step that changes or loads a document.
#[derive(Debug, Clone)]
enum Step {
    /// The application saves the document, and the save adds this number of messages.
    Save(usize),
    /// The application loads the document again.
    Load,
    /// Another program pushes a message.
    Push,
    /// Another program pushes an element that is not an entry.
    PushOdd(Bson),
    /// Another program removes the first element of the outbox, whatever that element is.
    PopFirst,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4usize).prop_map(Step::Save),
        1 => Just(Step::Load),
        2 => Just(Step::Push),
        1 => any_bson().prop_map(Step::PushOdd),
        1 => Just(Step::PopFirst),
    ]
}

#[derive(Debug, Serialize, Deserialize)]
struct Counted {
    #[serde(rename = "_id")]
    id: i32,
    count: u32,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Counted {
    type Id = i32;

    fn id(&self) -> &i32 {
        &self.id
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[derive(Serialize, Deserialize)]
struct Number(u32);

impl Message for Number {
    const TYPE: &'static str = "number";
}

/// A deliverer that records, for each document, the ids of the messages that it was given.
#[derive(Clone, Default)]
struct Noted(Arc<Mutex<HashMap<i32, Vec<Uuid>>>>);

#[async_trait]
impl Deliver for Noted {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let mut noted = self.0.lock().unwrap();
        for envelope in window {
            let id = Uuid::from_bytes(envelope.id.into_bytes());
            noted.entry(envelope.document.id().as_i32().unwrap()).or_default().push(id);
        }
        window.iter().map(|_| Outcome::Delivered.into()).collect()
    }
}

/// The elements of a document's outbox. At the end of a case, each of them must be delivered or still be in the outbox.
#[derive(Default)]
struct Ledger {
    sent: Vec<Uuid>,
    foreign: Vec<Uuid>,
    odd: Vec<Bson>,
}

/// *A save removes only entries that were delivered. Every message of the application is delivered once and in order, and each
/// element that another program pushed is delivered or stays in the outbox, unless another program removed it.*
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_save_removes_what_others_pushed() {
    let server = Server::open().await;
    let noted = Noted::default();
    let inline = InlineDispatcher::builder(&server.client)
        .mode(Mode::Await)
        .inline_lease(4 * FOR_EVER)
        .defer_clears(FOR_EVER)
        .state_database(server.database.name())
        .deliver_to(noted.clone());
    let store = Store::<Counted>::new(server.orders(), &inline);
    let cases = generate(CASES, prop::collection::vec(any_step(), 1..12));
    server.insert(cases.iter().map(|_| doc! { "count": 0, "outbox": [] })).await;

    let runs = cases.iter().zip(0i32..).map(|(steps, id)| run(&server, &store, id, steps));
    let ledgers: Vec<(i32, Ledger)> = stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    inline.close(FOR_EVER).await;

    let delivered = noted.0.lock().unwrap().clone();
    for (id, ledger) in ledgers {
        let steps = &cases[usize::try_from(id).unwrap()];
        let delivered = delivered.get(&id).cloned().unwrap_or_default();
        check(&ledger, &delivered, &server.outbox(id).await, steps);
    }
    server.close().await;
}

async fn run(server: &Server, store: &Store<Counted>, id: i32, steps: &[Step]) -> (i32, Ledger) {
    let mut ledger = Ledger::default();
    let mut loaded = store.load(&id).await.unwrap().unwrap();
    for step in steps {
        match step {
            Step::Save(messages) => save(store, &mut loaded, *messages, &mut ledger).await,
            Step::Load => loaded = store.load(&id).await.unwrap().unwrap(),
            Step::Push => {
                let message = Uuid::new();
                push(server, id, doc! { "id": message, "type": "foreign" }.into()).await;
                ledger.foreign.push(message);
            }
            Step::PushOdd(value) => {
                push(server, id, value.clone()).await;
                ledger.odd.push(value.clone());
            }
            Step::PopFirst => {
                let pop = doc! { "$pop": { "outbox": -1 } };
                let orders = server.orders();
                let before = orders.find_one_and_update(doc! { "_id": id }, pop).await.unwrap().unwrap();
                if let Some(first) = before.get_array("outbox").unwrap().first() {
                    ledger.forget(first);
                }
            }
        }
    }
    (id, ledger)
}

async fn save(store: &Store<Counted>, loaded: &mut Loaded<Counted>, messages: usize, ledger: &mut Ledger) {
    for _ in 0..messages {
        loaded.count += 1;
        let number = loaded.count;
        loaded.outbox.send(Number(number));
    }
    let ids = loaded.outbox.iter().map(|message| Uuid::from_bytes(message.id().into_bytes()));
    ledger.sent.extend(ids);
    assert!(store.save(loaded).await.unwrap().is_current());
}

async fn push(server: &Server, id: i32, element: Bson) {
    let push = doc! { "$push": { "outbox": element } };
    server.orders().update_one(doc! { "_id": id }, push).await.unwrap();
}

impl Ledger {
    /// Forgets the element that another program removed from the outbox.
    fn forget(&mut self, element: &Bson) {
        if let Some(place) = self.odd.iter().position(|odd| bytes(odd) == bytes(element)) {
            self.odd.remove(place);
        }
        self.foreign
            .retain(|id| element.as_document().and_then(|entry| entry.get("id")) != Some(&(*id).into()));
    }
}

fn check(ledger: &Ledger, delivered: &[Uuid], left: &[Bson], steps: &[Step]) {
    let is_foreign = |id: &&Uuid| !ledger.sent.contains(id);
    let own: Vec<Uuid> = delivered.iter().filter(|id| !is_foreign(id)).copied().collect();
    assert_eq!(own, ledger.sent, "each message must be delivered once and in order: {steps:?}");

    let id_of = |element: &Bson| element.as_document().and_then(|entry| entry.get("id").cloned());
    let (entries, odd): (Vec<&Bson>, Vec<&Bson>) = left.iter().partition(|element| id_of(element).is_some());
    assert!(odd.into_iter().map(bytes).eq(ledger.odd.iter().map(bytes)), "{steps:?}\n  left {left:?}");
    for id in &ledger.foreign {
        let times = delivered.iter().filter(|known| *known == id).count();
        let there = entries.iter().filter(|entry| id_of(entry) == Some((*id).into())).count();
        assert_eq!(times + there, 1, "{steps:?}\n  left {left:?}");
    }
    assert!(entries.len() <= ledger.foreign.len(), "{steps:?}\n  left {left:?}");
}

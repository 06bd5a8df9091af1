//! Shared by the flow tests: a separate database on the real server, an aggregate, and a recording deliverer.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{
    Aggregate, InlineDispatcher, Message, Outbox, Store,
    deliver::{Answer, Deliver, Envelope, Outcome},
};
use mongodb::{
    Client, Collection, Database,
    bson::{Bson, Document, RawDocumentBuf, doc},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use crate::on_panic::OnPanic;

/// The time limit of every wait for a signal. No test depends on a shorter time.
pub const LONG: Duration = Duration::from_secs(60);

/// The URI of a server that `scripts/services` starts.
pub fn uri(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run `scripts/test`, or `eval \"$(scripts/services env)\"`")
    })
}

/// A database that only this test uses. It is dropped at the end of the test.
pub struct TestDatabase {
    pub client: Client,
    pub database: Database,
    /// `None` if the server itself is removed after the test.
    pub on_panic: Option<OnPanic>,
}

impl TestDatabase {
    pub async fn create() -> Self {
        Self::on("OUTBOX_MONGODB_URI").await
    }

    pub async fn on(variable: &str) -> Self {
        let uri = uri(variable);
        let client = Client::with_uri_str(&uri).await.unwrap();
        let name = format!("t_{}", uuid::Uuid::now_v7().simple());
        let database = client.database(&name);
        Self { client, database, on_panic: Some(OnPanic::drop_databases(uri, name)) }
    }

    pub fn orders(&self) -> Collection<Document> {
        self.database.collection("orders")
    }

    pub fn store(&self, inline: &InlineDispatcher) -> Store<Order> {
        Store::new(self.orders(), inline)
    }

    /// The stored document.
    pub async fn stored(&self, id: impl Into<Bson>) -> Document {
        self.orders().find_one(doc! { "_id": id.into() }).await.unwrap().expect("the document is there")
    }

    /// The stored outbox; empty if there is none.
    pub async fn outbox(&self, id: impl Into<Bson>) -> Vec<Document> {
        let stored = self.stored(id).await;
        let entries = stored.get_array("outbox").cloned().unwrap_or_default();
        entries.into_iter().map(|entry| entry.as_document().unwrap().clone()).collect()
    }

    /// Waits, by the change stream, until the document satisfies a condition.
    pub async fn wait_until(&self, id: impl Into<Bson>, wanted: impl Fn(&Document) -> bool) -> Document {
        let id = id.into();
        let look = async {
            let mut changes = self.orders().watch().await.unwrap();
            loop {
                let stored =
                    self.orders().find_one(doc! { "_id": id.clone() }).await.unwrap().unwrap_or_default();
                if wanted(&stored) {
                    return stored;
                }
                changes.next_if_any().await.unwrap();
            }
        };
        tokio::time::timeout(LONG, look).await.expect("the document becomes as wanted")
    }

    /// Waits, by the change stream, until no document has a message left.
    pub async fn wait_until_all_are_empty(&self) {
        let filled = doc! { "outbox.0": { "$exists": true } };
        let look = async {
            let mut changes = self.orders().watch().await.unwrap();
            while self.orders().count_documents(filled.clone()).await.unwrap() > 0 {
                changes.next_if_any().await.unwrap();
            }
        };
        tokio::time::timeout(LONG, look).await.expect("every outbox becomes empty")
    }

    /// Inserts a document as another program could write it, with each `##` replaced by `\xff\xfe`, which is not UTF-8.
    pub async fn insert_damaged(&self, document: Document) {
        let mut bytes = RawDocumentBuf::try_from(&document).unwrap().into_bytes();
        for at in 1..bytes.len() {
            if bytes[at - 1..=at] == *b"##" {
                bytes[at - 1..=at].copy_from_slice(b"\xff\xfe");
            }
        }
        let orders: Collection<RawDocumentBuf> = self.orders().clone_with_type();
        orders.insert_one(RawDocumentBuf::from_bytes(bytes).unwrap()).await.unwrap();
    }

    pub async fn drop(self) {
        self.database.drop().await.unwrap();
    }
}

/// Whether all messages have left the stored document.
pub fn is_empty(stored: &Document) -> bool {
    stored.get_array("outbox").is_ok_and(Vec::is_empty)
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Order {
    #[serde(rename = "_id")]
    pub id: String,
    pub total: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    #[serde(skip)]
    pub outbox: Outbox,
}

impl Order {
    pub fn new(id: &str) -> Self {
        Self { id: id.into(), total: 0, note: None, outbox: Outbox::default() }
    }

    pub fn add(&mut self, amount: i64) {
        self.total += amount;
        self.outbox.send(Added { amount });
    }
}

impl Aggregate for Order {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Added {
    pub amount: i64,
}

impl Message for Added {
    const TYPE: &'static str = "order.added";
}

/// A deliverer that records its messages and answers as the test requires. The test can make it wait.
#[derive(Clone)]
pub struct Recorder {
    state: Arc<State>,
}

struct State {
    delivered: watch::Sender<Vec<Envelope>>,
    tried: watch::Sender<Vec<Envelope>>,
    answers: Mutex<VecDeque<Outcome>>,
    gate: Semaphore,
    available: watch::Sender<bool>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            state: Arc::new(State {
                delivered: watch::Sender::new(vec![]),
                tried: watch::Sender::new(vec![]),
                answers: Mutex::default(),
                gate: Semaphore::new(Semaphore::MAX_PERMITS / 2),
                available: watch::Sender::new(true),
            }),
        }
    }
}

impl Recorder {
    /// Creates a recorder that withholds its answers until they are released.
    pub fn held() -> Self {
        let recorder = Self::default();
        recorder.hold();
        recorder
    }

    /// From now on, withholds every answer until it is released.
    pub fn hold(&self) {
        self.state.gate.forget_permits(usize::MAX);
    }

    /// Releases the answers of `count` messages.
    pub fn let_through(&self, count: usize) {
        self.state.gate.add_permits(count);
    }

    /// Sets the answers for the next messages, one for each. After those, every message is delivered.
    pub fn answer(&self, outcomes: impl IntoIterator<Item = Outcome>) {
        self.state.answers.lock().unwrap().extend(outcomes);
    }

    pub fn set_available(&self, available: bool) {
        self.state.available.send_replace(available);
    }

    pub fn delivered(&self) -> Vec<Envelope> {
        self.state.delivered.borrow().clone()
    }

    /// The amounts of the [`Added`] messages delivered, in order.
    pub fn amounts(&self) -> Vec<i64> {
        self.delivered().iter().map(|envelope| envelope.decode::<Added>().unwrap().amount).collect()
    }

    /// Waits until `count` messages were delivered.
    pub async fn wait_delivered(&self, count: usize) -> Vec<Envelope> {
        wait_for(self.state.delivered.subscribe(), count).await
    }

    /// Waits until `count` tries have begun.
    pub async fn wait_tried(&self, count: usize) -> Vec<Envelope> {
        wait_for(self.state.tried.subscribe(), count).await
    }
}

async fn wait_for(mut seen: watch::Receiver<Vec<Envelope>>, count: usize) -> Vec<Envelope> {
    let enough = tokio::time::timeout(LONG, seen.wait_for(|seen| seen.len() >= count)).await;
    enough.unwrap_or_else(|_| panic!("{count} messages arrive")).unwrap().clone()
}

#[async_trait]
impl Deliver for Recorder {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let mut answers = Vec::new();
        for envelope in window {
            self.state.tried.send_modify(|tried| tried.push(envelope.clone()));
            self.state.gate.acquire().await.unwrap().forget();
            let outcome = self.state.answers.lock().unwrap().pop_front().unwrap_or(Outcome::Delivered);
            if outcome == Outcome::Delivered {
                self.state.delivered.send_modify(|delivered| delivered.push(envelope.clone()));
            }
            answers.push(outcome.into());
        }
        answers
    }

    fn is_available(&self) -> bool {
        *self.state.available.borrow()
    }

    async fn available(&self) {
        let _ = self.state.available.subscribe().wait_for(|available| *available).await;
    }
}

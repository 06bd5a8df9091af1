//! A database with messages in every state, and an operator.

use std::time::Duration;

use document_outbox::store::indexes;
use mongodb::{
    Client, Collection, Database, Namespace,
    bson::{Bson, DateTime, Document, Uuid, doc},
};
use outbox_operate::{
    Operator, OperatorSettings, Query,
    list::{ListRequest, Page, Row, Scan},
};

use crate::on_panic::OnPanic;

/// A time that every test's messages are dated by, before now.
const MINUTE: i64 = 60_000;

pub(crate) struct Scene {
    pub(crate) client: Client,
    pub(crate) database: Database,
    pub(crate) operator: Operator,
    pub(crate) now: DateTime,
    _on_panic: OnPanic,
}

impl Scene {
    /// An empty collection `orders` with its indexes.
    pub(crate) async fn new() -> Self {
        let scene = Self::without_indexes().await;
        scene.orders().create_indexes(indexes()).await.unwrap();
        scene
    }

    pub(crate) async fn without_indexes() -> Self {
        let uri = std::env::var("OUTBOX_MONGODB_URI").expect(r#"run `eval "$(scripts/services env)"`"#);
        let client = Client::with_uri_str(&uri).await.unwrap();
        let name = format!("t_{}", uuid::Uuid::now_v7().simple());
        let database = client.database(&name);
        database.create_collection("orders").await.unwrap();

        let settings = OperatorSettings::new(vec![format!("{name}.*").parse().unwrap()])
            .with(|settings| settings.state_database = format!("{name}_state"));
        let operator = Operator::new(client.clone(), settings);
        let now = operator.now().await.unwrap();
        Self { client, database, operator, now, _on_panic: OnPanic::drop_databases(uri, name) }
    }

    /// The same scene with other settings.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut OperatorSettings)) -> Self {
        self.operator = Operator::new(self.client.clone(), self.operator.settings().clone().with(change));
        self
    }

    /// An operator of this scene with other settings.
    pub(crate) fn with_order(&self, change: impl FnOnce(&mut OperatorSettings)) -> Operator {
        Operator::new(self.client.clone(), self.operator.settings().clone().with(change))
    }

    pub(crate) fn orders(&self) -> Collection<Document> {
        self.database.collection("orders")
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::new(self.database.name(), "orders")
    }

    pub(crate) fn state(&self) -> Database {
        self.client.database(&format!("{}_state", self.database.name()))
    }

    /// A date this many minutes from now.
    pub(crate) fn at(&self, minutes: i64) -> DateTime {
        DateTime::from_millis(self.now.timestamp_millis() + minutes * MINUTE)
    }

    pub(crate) async fn insert(&self, id: impl Into<Bson>, outbox: impl Into<Bson>) {
        self.orders().insert_one(doc! { "_id": id.into(), "outbox": outbox.into() }).await.unwrap();
    }

    /// One document for each state, and malformed elements among messages.
    pub(crate) async fn with_every_state(&self) {
        let sent = self.at(-30);
        self.insert("due", vec![entry("order.placed", doc! { "created_at": sent, "available_at": sent })])
            .await;
        self.insert("undated", vec![entry("order.placed", doc! { "created_at": sent })]).await;
        self.insert(
            "claimed",
            vec![entry("order.placed", doc! { "available_at": self.at(30), "claimed_by": "worker/1" })],
        )
        .await;
        self.insert("retrying", vec![self.retrying("timed out after 250 ms")]).await;
        self.insert(
            "scheduled",
            vec![entry("order.reminded", doc! { "created_at": sent, "available_at": self.at(60) })],
        )
        .await;
        self.insert(
            "dead",
            vec![self.dead("permanent", "no route to 10.0.0.1"), entry("order.paid", doc! {})],
        )
        .await;
        self.insert(
            "mixed",
            vec![Bson::Null, entry("order.paid", doc! { "attempts": "many" }).into(), 7.into()],
        )
        .await;
        self.insert("empty", Vec::<Bson>::new()).await;
        self.insert("not_an_array", "a text").await;
    }

    pub(crate) fn dead(&self, reason: &str, error: &str) -> Document {
        entry(
            "order.paid",
            doc! {
                "created_at": self.at(-90), "dead_at": self.at(-20), "dead_reason": reason, "last_error": error,
                "attempts": 10,
            },
        )
    }

    pub(crate) fn retrying(&self, error: &str) -> Document {
        entry(
            "order.placed",
            doc! {
                "created_at": self.at(-10), "available_at": self.at(30), "attempts": 2, "last_error": error,
            },
        )
    }

    pub(crate) async fn list(&self, query: &str) -> Page {
        self.page(query, 1_000, None, Scan::Never).await
    }

    pub(crate) async fn page(&self, query: &str, limit: usize, after: Option<String>, scan: Scan) -> Page {
        let query: Query = query.parse().unwrap_or_else(|error| panic!("{error}"));
        let listed = self.operator.list(ListRequest { query, limit, after, scan }).await;
        listed.unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) async fn drop(self) {
        self.state().drop().await.unwrap();
        self.database.drop().await.unwrap();
    }
}

pub(crate) fn entry(message_type: &str, extra: Document) -> Document {
    let mut entry =
        doc! { "id": new_id(), "type": message_type, "payload": { "order": "o-1", "total": 7_i64 } };
    entry.extend(extra);
    entry
}

pub(crate) fn new_id() -> Uuid {
    Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes())
}

/// The documents of rows, sorted.
pub(crate) fn documents(rows: &[Row]) -> Vec<&str> {
    let mut documents: Vec<&str> = rows.iter().map(|row| row.document.as_str()).collect();
    documents.sort_unstable();
    documents
}

pub(crate) fn id_of(entry: &Document) -> Uuid {
    match entry.get("id") {
        Some(Bson::Binary(binary)) => Uuid::from_bytes(binary.bytes.clone().try_into().unwrap()),
        other => panic!("{other:?} is not an id"),
    }
}

/// The time limit of every wait.
pub(crate) const LONG: Duration = Duration::from_secs(60);

//! A database that only one test uses.

use document_outbox::internal::ServerClock;
use mongodb::{
    Client, Collection, Database,
    bson::{Bson, DateTime, Document, RawDocumentBuf, doc},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::on_panic::OnPanic;

pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) database: Database,
    _on_panic: OnPanic,
}

impl Server {
    pub(crate) async fn open() -> Self {
        let uri = std::env::var("OUTBOX_MONGODB_URI")
            .expect("OUTBOX_MONGODB_URI is set by scripts/test, or by `eval \"$(scripts/services env)\"`");
        let client = Client::with_uri_str(&uri).await.unwrap();
        let name = format!("t_{}", uuid::Uuid::now_v7().simple());
        Self { database: client.database(&name), client, _on_panic: OnPanic::drop_databases(uri, name) }
    }

    pub(crate) fn orders(&self) -> Collection<Document> {
        self.database.collection("orders")
    }

    pub(crate) async fn now(&self) -> DateTime {
        ServerClock::new(self.client.clone()).now().await.unwrap()
    }

    /// Stores one document for each item, with the fields of the item. The values of `_id` count from 0.
    pub(crate) async fn insert(&self, documents: impl IntoIterator<Item = Document>) {
        let numbered = documents.into_iter().zip(0i32..).map(|(fields, id)| {
            let mut document = doc! { "_id": id };
            document.extend(fields);
            document
        });
        self.orders().insert_many(numbered).await.unwrap();
    }

    pub(crate) async fn stored(&self, id: i32) -> RawDocumentBuf {
        let orders = self.orders().clone_with_type::<RawDocumentBuf>();
        orders.find_one(doc! { "_id": id }).await.unwrap().expect("the document is there")
    }

    /// Returns the elements of a stored outbox.
    pub(crate) async fn outbox(&self, id: i32) -> Vec<Bson> {
        let stored = Document::try_from(self.stored(id).await.as_ref()).unwrap();
        stored.get_array("outbox").unwrap().clone()
    }

    pub(crate) async fn close(self) {
        self.database.drop().await.unwrap();
    }
}

/// Generates `count` values with a strategy. Each run generates different values. If `OUTBOX_TEST_SEED` has the seed of an
/// earlier run, the run generates the values of that earlier run.
pub(crate) fn generate<T>(count: usize, strategy: impl Strategy<Value = T>) -> Vec<T> {
    let seed = match std::env::var("OUTBOX_TEST_SEED") {
        Ok(seed) => seed.parse().expect("OUTBOX_TEST_SEED is a number"),
        Err(_) => u64::from_be_bytes(uuid::Uuid::new_v4().as_bytes()[..8].try_into().unwrap()),
    };
    println!("OUTBOX_TEST_SEED={seed}");

    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

//! What is published when the majority is out of reach: nothing.
//!
//! On the three-node set of `scripts/services up --replicas 3`. These tests stop its replication, so they run one at a
//! time (their names begin with `outage`, see `.config/nextest.toml`).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;

use document_outbox::{
    DocumentRef, Inline, Ordering,
    clock::ServerClock,
    process::{Processed, Processor, ProcessorSettings},
    store::{Inserted, Saved},
};
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
    options::{ClientOptions, ServerAddress},
};
use support::{Order, Recorder, TestDatabase, uri};
use tokio_util::sync::CancellationToken;

const RS3: &str = "OUTBOX_TEST_MONGODB_RS3_URI";

/// Stops the secondaries from applying what the primary writes, until dropped.
struct StalledReplication;

impl StalledReplication {
    async fn begin() -> Self {
        let stalled = Self;
        assert_eq!(set_stalled("alwaysOn").await, 2, "the set has two secondaries");
        stalled
    }
}

impl Drop for StalledReplication {
    /// On a runtime of its own, so that a failing test lets go too.
    fn drop(&mut self) {
        let let_go = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(set_stalled("off"))
        });
        let_go.join().unwrap();
    }
}

/// Sets the fail point on every secondary, and counts them.
async fn set_stalled(mode: &str) -> usize {
    let options = ClientOptions::parse(uri(RS3)).await.unwrap();
    let mut secondaries = 0;
    for host in options.hosts {
        let admin = direct(host).await.database("admin");
        let hello = admin.run_command(doc! { "hello": 1 }).await.unwrap();
        if hello.get_bool("secondary").unwrap_or(false) {
            admin.run_command(doc! { "configureFailPoint": "rsSyncApplyStop", "mode": mode }).await.unwrap();
            secondaries += 1;
        }
    }
    secondaries
}

async fn direct(host: ServerAddress) -> Client {
    let options = ClientOptions::builder().hosts(vec![host]).direct_connection(true).build();
    Client::with_options(options).unwrap()
}

fn worker(test: &TestDatabase, recorder: &Recorder) -> Processor {
    let clock = ServerClock::new(test.client.clone());
    Processor::new(test.client.clone(), clock, Arc::new(recorder.clone()), ProcessorSettings::default())
}

fn document(test: &TestDatabase, id: &str) -> DocumentRef {
    DocumentRef::by_id(test.orders().namespace(), id)
}

/// P1 Atomic: no phantom. A save, and a claim, whose majority never comes publish nothing; the first is told as unknown.
#[tokio::test]
async fn outage_of_the_majority_publishes_nothing_and_loses_nothing() {
    // Where an earlier run was killed in the middle.
    set_stalled("off").await;
    let test = TestDatabase::on(RS3).await;
    let recorder = Recorder::default();
    let orders = test.store(&Inline::builder(&test.client).deliver_to(recorder.clone()));
    let worker = worker(&test, &recorder);
    let stop = CancellationToken::new();
    let mut placed = Order::new("before");
    placed.add(1);
    let off = test.store(&Inline::off(&test.client));
    assert!(matches!(off.insert(placed).await.unwrap(), Inserted::Applied(..)));
    let mut loaded = orders.load(&"before".into()).await.unwrap().unwrap();
    let before = document(&test, "before");
    let mut crowd = Vec::new();
    for id in ["1", "2", "3", "4", "5"] {
        assert!(matches!(off.insert(Order::new(id)).await.unwrap(), Inserted::Applied(..)));
        let mut one = orders.load(&id.into()).await.unwrap().unwrap();
        one.add(7);
        crowd.push(one);
    }

    let stalled = StalledReplication::begin().await;
    // Written by the primary alone: a local read shows it, and a failover could undo it.
    let phantom =
        doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": 3i64 } };
    let alone = mongodb::options::WriteConcern::nodes(1);
    let phantom = doc! { "_id": "phantom", "outbox": [phantom] };
    test.orders().insert_one(phantom).write_concern(alone).await.unwrap();
    let shown = document(&test, "phantom");

    loaded.add(2);
    // The first goes alone, the others together behind it.
    let crowd = crowd.iter_mut().map(|one| orders.save(one));
    let (saved, crowd, claimed, phantom) = tokio::join!(
        orders.save(&mut loaded),
        futures::future::join_all(crowd),
        worker.process(&before, Ordering::Ordered, &stop),
        worker.process(&shown, Ordering::Ordered, &stop),
    );
    assert!(matches!(saved.unwrap(), Saved::Unknown(_)));
    assert!(crowd.iter().all(|saved| matches!(saved, Ok(Saved::Unknown(_)))), "{crowd:?}");
    assert!(claimed.is_err() && phantom.is_err());
    assert!(recorder.wait_tried(0).await.is_empty(), "nothing was published");

    drop(stalled);
    // A claim without an answer is taken back: it must not count as one whose holder died.
    for id in ["before", "phantom"] {
        let taken_back =
            |entry: &Document| entry.get_i32("claims") == Ok(0) && !entry.contains_key("claimed_by");
        test.wait_until(id, |stored| entries(stored).any(taken_back)).await;
    }
    // The writes came through late: all messages are there, and are delivered once nothing holds them any more.
    for (id, amounts) in [("before", vec![1, 2]), ("phantom", vec![3])] {
        let past = mongodb::bson::DateTime::from_millis(0);
        let expire = doc! { "$set": { "outbox.$[].available_at": past } };
        test.orders().update_one(doc! { "_id": id }, expire).await.unwrap();
        let delivered = recorder.delivered().len();
        let document = document(&test, id);
        assert_eq!(worker.process(&document, Ordering::Ordered, &stop).await.unwrap(), Processed::Done);
        assert_eq!(recorder.amounts()[delivered..], amounts);
    }
    test.drop().await;
}

fn entries(stored: &Document) -> impl Iterator<Item = &Document> {
    let entries = stored.get_array("outbox").map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter_map(Bson::as_document)
}

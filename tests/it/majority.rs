//! Tests that no message is published without a majority.
//!
//! The tests use the set of three nodes that `scripts/services up --replicas 3` starts. The tests stop the replication
//! of this set, so they run one at a time (in the module `outage`, see `.config/nextest.toml`).

use std::{sync::Arc, time::Duration};

use crate::support::{LONG, Order, Recorder, TestDatabase, uri};
use document_outbox::{
    DeliveryOrder, DocumentRef, InlineDispatcher, Store,
    dispatch::{Processed, Processor, ProcessorSettings},
    store::{Inserted, Saved},
};
use mongodb::{
    Client, Database,
    bson::{Bson, DateTime, Document, doc},
    options::{ClientOptions, ReadConcern, ServerAddress},
};
use tokio_util::sync::CancellationToken;

const RS3: &str = "OUTBOX_TEST_MONGODB_RS3_URI";

/// Stops the secondaries from applying the primary's writes until this value is dropped.
pub(crate) struct StalledReplication;

impl StalledReplication {
    pub(crate) async fn begin() -> Self {
        let stalled = Self;
        let secondaries = set_stalled("alwaysOn").await;
        assert_eq!(secondaries.len(), 2, "the set has two secondaries");

        // A secondary still applies the writes that it was about to apply.
        for (secondary, before) in secondaries {
            let most = i64::try_from(LONG.as_millis()).unwrap();
            let wait = doc! { "waitForFailPoint": STALL, "timesEntered": before + 1, "maxTimeMS": most };
            secondary.run_command(wait).await.unwrap();
        }
        stalled
    }
}

impl Drop for StalledReplication {
    /// Use a separate runtime, so that a failing test also releases the secondaries.
    fn drop(&mut self) {
        let let_go = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(set_stalled("off"));
        });
        let_go.join().unwrap();
    }
}

const STALL: &str = "rsSyncApplyStop";

/// Sets the fail point on every secondary. Returns their admin databases and the number of times that each
/// secondary had hit the fail point before.
async fn set_stalled(mode: &str) -> Vec<(Database, i64)> {
    let options = ClientOptions::parse(uri(RS3)).await.unwrap();
    let mut secondaries = Vec::new();
    for host in options.hosts {
        let admin = direct(host).await.database("admin");
        let hello = admin.run_command(doc! { "hello": 1 }).await.unwrap();
        if hello.get_bool("secondary").unwrap_or(false) {
            let set = admin.run_command(doc! { "configureFailPoint": STALL, "mode": mode }).await.unwrap();
            let met = set.get("count").unwrap();
            let met = met.as_i64().or(met.as_i32().map(i64::from)).unwrap();
            secondaries.push((admin, met));
        }
    }
    secondaries
}

/// Keeps both secondaries behind by a given time until this value is dropped. The secondaries still vote, so
/// the majority acknowledges writes late.
struct LateMajority;

impl LateMajority {
    async fn begin(seconds: i64) -> Self {
        let late = Self;
        set_late(seconds).await;
        late
    }
}

impl Drop for LateMajority {
    /// Use a separate runtime, so that a failing test also restores the replica set.
    fn drop(&mut self) {
        let restored = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(set_late(0))
        });
        restored.join().unwrap();
    }
}

/// Makes both secondaries apply everything this many seconds late. Returns once the majority is that late.
async fn set_late(seconds: i64) {
    if seconds > 0 {
        crate::isolation::assert_in("outage");
    }
    let client = Client::with_uri_str(uri(RS3)).await.unwrap();
    let admin = client.database("admin");
    let hello = admin.run_command(doc! { "hello": 1 }).await.unwrap();
    let primary = hello.get_str("primary").unwrap().to_owned();
    let mut config = admin.run_command(doc! { "replSetGetConfig": 1 }).await.unwrap();
    let mut config = config.get_document_mut("config").unwrap().clone();
    config.insert("version", config.get_i32("version").unwrap() + 1);
    for member in config.get_array_mut("members").unwrap() {
        let member = member.as_document_mut().unwrap();
        let is_late = seconds > 0 && member.get_str("host") != Ok(&primary);
        member.insert("priority", if is_late { 0 } else { 1 });
        member.insert("hidden", is_late);
        member.insert("secondaryDelaySecs", if is_late { seconds } else { 0 });
    }
    admin.run_command(doc! { "replSetReconfig": config }).await.unwrap();
    if seconds == 0 {
        let written = client.database("admin").collection::<Document>("reached");
        let majority = mongodb::options::WriteConcern::majority();
        written.insert_one(doc! { "at": DateTime::now() }).write_concern(majority).await.unwrap();
        written.drop().await.unwrap();
    }
}

/// The outcomes of saves.
#[derive(Debug, Default)]
struct Tally {
    applied: usize,
    other: Vec<String>,
    slowest: Duration,
}

/// Runs savers that each have one order and pause between their saves, for `rounds` saves or until `time` has passed.
async fn save_steadily(orders: &Store<Order>, savers: usize, rounds: usize, time: Duration) -> Tally {
    let begun = std::time::Instant::now();
    let saves = (0..savers).map(|saver| async move {
        let id = format!("steady-{saver}");
        let Ok(Inserted::Applied(mut loaded, _)) = orders.insert(Order::new(&id)).await else {
            return Tally { other: vec![format!("{id} was not inserted")], ..Tally::default() };
        };
        let mut tally = Tally::default();
        for round in 0..rounds {
            if begun.elapsed() > time {
                break;
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..1_000))).await;
            loaded.total = round as i64 + 1;
            let since = std::time::Instant::now();
            match orders.save(&mut loaded).await {
                Ok(Saved::Applied(_)) => tally.applied += 1,
                other => tally.other.push(format!("{other:?}")),
            }
            tally.slowest = tally.slowest.max(since.elapsed());
        }
        tally
    });
    let mut all = Tally::default();
    for tally in futures::future::join_all(saves).await {
        all.applied += tally.applied;
        all.other.extend(tally.other);
        all.slowest = all.slowest.max(tally.slowest);
    }
    all
}

/// Runs the same savers with a late majority and a concurrent writer, so that the majority never catches up.
async fn save_under_a_late_majority(seconds: i64, savers: usize, rounds: usize, time: Duration) -> Tally {
    let test = TestDatabase::on(RS3).await;
    let orders = test.store(&InlineDispatcher::builder(&test.client).deliver_to(Recorder::default()));
    let late = LateMajority::begin(seconds).await;
    let beside = test.database.collection::<Document>("beside");
    let stop = CancellationToken::new();
    let writer = async {
        let alone = mongodb::options::WriteConcern::nodes(1);
        while !stop.is_cancelled() {
            beside.insert_one(doc! { "x": 1 }).write_concern(alone.clone()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let saving = async {
        let tally = save_steadily(&orders, savers, rounds, time).await;
        stop.cancel();
        tally
    };
    let (tally, ()) = tokio::join!(saving, writer);
    drop(late);
    let stored = test.orders().distinct("total", doc! {}).await.unwrap();
    assert!(!stored.is_empty());
    test.drop().await;
    tally
}

async fn direct(host: ServerAddress) -> Client {
    let options = ClientOptions::builder().hosts(vec![host]).direct_connection(true).build();
    Client::with_options(options).unwrap()
}

fn worker(test: &TestDatabase, recorder: &Recorder) -> Processor {
    Processor::new(test.client.clone(), Arc::new(recorder.clone()), ProcessorSettings::default())
}

fn document(test: &TestDatabase, id: &str) -> DocumentRef {
    DocumentRef::by_id(test.orders().namespace(), id)
}

fn entries(stored: &Document) -> impl Iterator<Item = &Document> {
    let entries = stored.get_array("outbox").map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter_map(Bson::as_document)
}

/// Waits until the server is executing a read of the orders that can't end before the majority follows.
async fn wait_for_a_read(test: &TestDatabase) {
    let reads = doc! { "$match": {
        "command.find": "orders", "command.$db": test.database.name(), "command.readConcern.level": "linearizable",
    } };
    let admin = test.client.database("admin");
    loop {
        let mut found = admin.aggregate([doc! { "$currentOp": {} }, reads.clone()]).await.unwrap();
        if found.advance().await.unwrap() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes the primary refuse this program's updates as too large, or accept them again, depending on `mode`.
async fn refuse_room(test: &TestDatabase, name: &str, mode: &str) {
    let data = doc! { "failCommands": ["update"], "appName": name, "errorCode": 17419 };
    let point = doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data };
    test.client.database("admin").run_command(point).await.unwrap();
}

/// These tests stop, block or slow down a server.
mod outage {
    use super::*;

    /// P1 Atomic: if the majority never acknowledges a save or a claim, no message is published, and the
    /// save is reported as unknown.
    #[tokio::test]
    async fn a_lost_majority_publishes_and_loses_nothing() {
        // Clean up first, in case an earlier run was killed.
        set_stalled("off").await;
        let test = TestDatabase::on(RS3).await;
        let recorder = Recorder::default();
        let orders = test.store(&InlineDispatcher::builder(&test.client).deliver_to(recorder.clone()));
        let worker = worker(&test, &recorder);
        let stop = CancellationToken::new();
        let mut placed = Order::new("before");
        placed.add(1);
        let off = test.store(&InlineDispatcher::off(&test.client));
        assert!(matches!(off.insert(placed).await.unwrap(), Inserted::Applied(..)));
        let mut loaded = orders.load("before").await.unwrap().unwrap();
        let before = document(&test, "before");
        let mut crowd = Vec::new();
        for id in ["1", "2", "3", "4", "5"] {
            assert!(matches!(off.insert(Order::new(id)).await.unwrap(), Inserted::Applied(..)));
            let mut one = orders.load(id).await.unwrap().unwrap();
            one.add(7);
            crowd.push(one);
        }

        let stalled = StalledReplication::begin().await;
        // Only the primary has the write: a local read shows it, and a failover could undo it.
        let phantom =
            doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": 3i64 } };
        let alone = mongodb::options::WriteConcern::nodes(1);
        let phantom = doc! { "_id": "phantom", "outbox": [phantom] };
        test.orders().insert_one(phantom).write_concern(alone).await.unwrap();
        let shown = document(&test, "phantom");

        loaded.add(2);
        // The first save is sent alone, and the other saves follow in a batch.
        let crowd = crowd.iter_mut().map(|one| orders.save(one));
        let (saved, crowd, claimed, phantom) = tokio::join!(
            orders.save(&mut loaded),
            futures::future::join_all(crowd),
            worker.process(&before, DeliveryOrder::Ordered, &stop),
            worker.process(&shown, DeliveryOrder::Ordered, &stop),
        );
        assert!(matches!(saved.unwrap(), Saved::Unknown(_)));
        assert!(crowd.iter().all(|saved| matches!(saved, Ok(Saved::Unknown(_)))), "{crowd:?}");
        assert!(claimed.is_err() && phantom.is_err());
        assert!(recorder.wait_tried(0).await.is_empty(), "no message was published");

        drop(stalled);
        // A claim without an answer is undone, because it must not count as a claim whose holder died.
        for id in ["before", "phantom"] {
            let taken_back =
                |entry: &Document| entry.get_i32("claims") == Ok(0) && !entry.contains_key("claimed_by");
            test.wait_until(id, |stored| entries(stored).any(taken_back)).await;
        }
        // The writes arrived late: all messages are stored, and are delivered once their claims have ended.
        for (id, amounts) in [("before", vec![1, 2]), ("phantom", vec![3])] {
            let past = mongodb::bson::DateTime::from_millis(0);
            let expire = doc! { "$set": { "outbox.$[].available_at": past } };
            test.orders().update_one(doc! { "_id": id }, expire).await.unwrap();
            let delivered = recorder.delivered().len();
            let document = document(&test, id);
            assert_eq!(
                worker.process(&document, DeliveryOrder::Ordered, &stop).await.unwrap(),
                Processed::Done
            );
            assert_eq!(recorder.amounts()[delivered..], amounts);
        }
        // Batches whose callers gave up have no later effect.
        let client = test.client.clone();
        test.drop().await;
        let ends = tokio::time::timeout(LONG, client.shutdown().into_future()).await;
        assert!(ends.is_ok(), "the client does not shut down");
    }

    /// P3: a process takes a lease on a document without room for a claim. Then room is made, and a claim is
    /// written into the document. The process with the lease sees this claim even before the majority has it.
    #[tokio::test]
    async fn a_stalled_majority_hides_no_claim_from_a_lease() {
        set_stalled("off").await;
        let test = TestDatabase::on(RS3).await;
        let name = test.database.name().to_owned();
        let hello = test.client.database("admin").run_command(doc! { "hello": 1 }).await.unwrap();
        let network = crate::network::Network::to(hello.get_str("primary").unwrap());
        let uri = format!("mongodb://{}/?directConnection=true&appName={name}", network.uri());
        let client = Client::with_uri_str(uri).await.unwrap();
        let state = test.client.database(&format!("{name}_state"));
        let recorder = Recorder::default();
        let settings =
            ProcessorSettings::default().with(|settings| settings.state_database = state.name().to_owned());
        let worker = Processor::new(client, Arc::new(recorder.clone()), settings);
        let entry =
            doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 } };
        let full = doc! { "_id": "full", "outbox": [entry] };
        let majority = mongodb::options::WriteConcern::majority();
        test.orders().insert_one(full).write_concern(majority).await.unwrap();
        refuse_room(&test, &name, "alwaysOn").await;

        let stalled = StalledReplication::begin().await;
        let leases = state.collection::<Document>("leases");
        let claim = async {
            // The worker has written its lease, and now waits for the answer, which needs the majority.
            while leases.find_one(doc! {}).await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            refuse_room(&test, &name, "off").await;
            network.hold_requests(true);
            drop(stalled);
            let of_majority = || leases.find_one(doc! {}).read_concern(ReadConcern::majority()).into_future();
            while of_majority().await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }

            let stalled = StalledReplication::begin().await;
            let until = DateTime::from_millis(DateTime::now().timestamp_millis() + 600_000);
            let claim = doc! { "outbox.0.claimed_by": "other/1", "outbox.0.available_at": until };
            let alone = mongodb::options::WriteConcern::nodes(1);
            let (orders, claim) = (test.orders(), doc! { "$set": claim });
            orders.update_one(doc! { "_id": "full" }, claim).write_concern(alone).await.unwrap();
            network.hold_requests(false);
            tokio::select! {
                _ = recorder.wait_tried(1) => {}
                () = wait_for_a_read(&test) => {}
            }
            drop(stalled);
        };
        let (full, stop) = (document(&test, "full"), CancellationToken::new());
        let (processed, ()) = tokio::join!(worker.process(&full, DeliveryOrder::Ordered, &stop), claim);
        assert_eq!(recorder.amounts(), Vec::<i64>::new(), "another process has the claim");
        assert!(matches!(processed.unwrap(), Processed::Held(_)));

        state.drop().await.unwrap();
        test.drop().await;
    }

    /// P1: a late majority only causes a delay.
    #[tokio::test]
    async fn a_late_majority_fails_no_grouped_save() {
        let tally = save_under_a_late_majority(2, 20, 2, Duration::from_secs(60)).await;
        assert_eq!((tally.applied, tally.other), (40, Vec::new()));
    }

    async fn stress_late_majority(seconds: i64) {
        let tally = save_under_a_late_majority(seconds, 64, usize::MAX, Duration::from_secs(60)).await;
        println!("{seconds} s behind: {} applied, slowest {:?}", tally.applied, tally.slowest);
        assert_eq!(tally.other, Vec::<String>::new());
    }

    #[tokio::test]
    #[ignore = "stress: run by scripts/stress"]
    async fn stress_majority_two_seconds_behind_fails_no_save() {
        stress_late_majority(2).await;
    }

    #[tokio::test]
    #[ignore = "stress: run by scripts/stress"]
    async fn stress_majority_five_seconds_behind_fails_no_save() {
        stress_late_majority(5).await;
    }

    #[tokio::test]
    #[ignore = "stress: run by scripts/stress"]
    async fn stress_majority_nine_seconds_behind_fails_no_save() {
        stress_late_majority(9).await;
    }
}

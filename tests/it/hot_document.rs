//! Tests one document that two processes save all the time. The document's messages must stay in order, and inline
//! dispatch must keep up.

use std::{process::Stdio, time::Duration};

use crate::flow::{Flow, Received, Receiver, WORKER};
use crate::support::{LONG, TestDatabase};
use document_outbox::{Aggregate, InlineDispatcher, Message, Outbox, RetryPolicy, Store, command::Reason};
use mongodb::bson::{Bson, Uuid, doc};
use outbox_rescuer::RescueEvent;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

const DOCUMENT: &str = "hot";
const PROCESSES: [&str; 2] = ["a", "b"];
const SAVES_A_SECOND: u32 = 50;
/// The rescuer's delay, after which it would send a command to a worker.
const DELAY: Duration = Duration::from_secs(5);

/// The time for which the document is saved: a minute on request, shorter in the suite.
fn seconds() -> u32 {
    match std::env::var_os("OUTBOX_TEST_LONG") {
        Some(_) => 60,
        None => 12,
    }
}

fn saves() -> i64 {
    i64::from(SAVES_A_SECOND * seconds())
}

/// A document that counts its saves. Each message carries the number of its save.
#[derive(Debug, Serialize, Deserialize)]
struct Counter {
    #[serde(rename = "_id")]
    id: String,
    count: i64,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Debug, Serialize, Deserialize)]
struct Counted {
    count: i64,
    by: String,
    /// Number of saves that this process had made before this message.
    nth: i64,
}

impl Message for Counted {
    const TYPE: &'static str = "counter.counted";
}

impl Aggregate for Counter {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

/// The environment variables of a saving process.
const NAME: &str = "OUTBOX_TEST_SAVER";
const DATABASE: &str = "OUTBOX_TEST_SAVER_DATABASE";

/// The process that saves for the next test. If this test is run alone, it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_saves_the_hot_document() {
    let (Ok(name), Ok(database)) = (std::env::var(NAME), std::env::var(DATABASE)) else {
        return;
    };
    let mut test = TestDatabase::create().await;
    test.database = test.client.database(&database);
    let flow = Flow::of(test, &crate::support::uri("OUTBOX_RABBITMQ_URI"));
    let rabbitmq = flow.rabbitmq(&name).await;
    let inline = InlineDispatcher::builder(&flow.test.client)
        .name(&name)
        .inline_lease(Duration::from_secs(4))
        .deliver_to(rabbitmq.clone());
    let counters = Store::<Counter>::new(flow.test.orders(), &inline);
    let ready = doc! { "$push": { "ready": &name } };
    flow.test.orders().update_one(doc! { "_id": "start" }, ready).await.unwrap();
    let both = |stored: &mongodb::bson::Document| stored.get_array("ready").unwrap().len() == PROCESSES.len();
    flow.test.wait_until("start", both).await;

    let mut pace = tokio::time::interval(Duration::from_secs(1) / SAVES_A_SECOND);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for nth in 0..saves() {
        pace.tick().await;
        let count = |counter: &mut Counter| {
            counter.count += 1;
            counter.outbox.send(Counted { count: counter.count, by: name.clone(), nth });
        };
        counters.update(DOCUMENT, count).await.unwrap();
    }
    inline.close(LONG).await;
    rabbitmq.close().await;
}

/// P4 Ordered per document: messages of one document are delivered in the order of its outbox. *Hot documents
/// (many saves a second, several processes) keep P4 and stay on the fast path.*
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_keep_order_on_the_fast_path() {
    let flow = Flow::begin().await;
    let documents = [doc! { "_id": DOCUMENT, "count": 0i64 }, doc! { "_id": "start", "ready": [] }];
    flow.test.orders().insert_many(documents).await.unwrap();
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(RetryPolicy::default()).await;
    let mut rescuer = flow.rescuer(flow.rescuer_settings(DELAY)).await;

    let processes = PROCESSES.map(|name| {
        tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hot_document::a_process_that_saves_the_hot_document"])
            .env(NAME, name)
            .env(DATABASE, flow.name())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    });
    for mut process in processes {
        assert!(process.wait().await.unwrap().success());
    }
    let all = usize::try_from(saves()).unwrap() * PROCESSES.len();
    let counted = flow.test.stored(DOCUMENT).await.get_i64("count").unwrap();
    assert_eq!(usize::try_from(counted).unwrap(), all, "every process made its saves");

    receiver.wait(all).await;
    in_order(&receiver, all);

    // The stream is read in order, so this first command comes after every save of the hot document.
    let foreign = doc! { "id": Uuid::new(), "type": "counter.counted", "payload": { "count": -1 } };
    let last = doc! { "_id": "last", "outbox": [foreign] };
    flow.test.orders().insert_one(last).await.unwrap();
    let queued = |event: &RescueEvent| match event {
        RescueEvent::Queued { document, reason } => Some((document.id().clone(), *reason)),
        _ => None,
    };
    let first = rescuer.wait("the last document to be queued", queued).await;
    assert_eq!(first, (Bson::from("last"), Reason::Stream));
    assert_eq!(receiver.wait(all + 1).await.len(), all + 1, "each exactly once");

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

fn in_order(receiver: &Receiver, all: usize) {
    let received = receiver.all();
    let counts: Vec<_> = received.iter().map(|message| message.body["count"].as_i64().unwrap()).collect();
    let wanted: Vec<_> = (1..).take(all).collect();
    assert_eq!(counts, wanted, "the order of the saves");
    let save = |message: &Received| {
        let (by, nth) = (&message.body["by"], &message.body["nth"]);
        (by.as_str().unwrap().to_owned(), nth.as_i64().unwrap())
    };
    let saves: Vec<(String, i64)> = received.iter().map(save).collect();
    for name in PROCESSES {
        let own: Vec<_> = saves.iter().filter(|(by, _)| by == name).map(|(_, nth)| *nth).collect();
        let wanted: Vec<_> = (0..).take(all / PROCESSES.len()).collect();
        assert_eq!(own, wanted, "the order of process {name}");
    }
    let turns = saves.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
    assert!(turns > all / 100, "both saved at the same time: {turns} turns in {all}");
    let rescued = received.iter().filter(|message| message.app_id() == WORKER).count();
    assert!(rescued * 100 <= all, "{rescued} of {all} were not delivered inline");
}

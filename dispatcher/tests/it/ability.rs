//! A worker that cannot process commands leaves commands to other workers, and reports that it is not ready.

use std::time::Duration;

use document_outbox::{
    amqp::{Publication, Published},
    command::{COMMANDS_ROUTING_KEY, ProcessDocumentMessages, Reason},
    dispatch::Processed,
};
use lapin::options::BasicGetOptions;
use mongodb::{
    Client,
    bson::{Document, Uuid, doc},
    options::ClientOptions,
};
use outbox_dispatcher::{DispatcherEvent, Left};

use crate::{
    network::{Network, host},
    scene::{Scene, put_back, until},
    support::{LONG, Recorder, uri},
};

/// Simulates another cluster by using another state database, whose collection of positions has another UUID.
struct Elsewhere {
    state: String,
    cluster: uuid::Uuid,
}

impl Elsewhere {
    async fn made(scene: &Scene, name: &str) -> Self {
        let state = scene.test.client.database(&format!("{}_{name}", scene.test.database.name()));
        state.create_collection("positions").await.unwrap();
        let mut listed = state.list_collections().await.unwrap();
        assert!(listed.advance().await.unwrap());
        let uuid = listed.deserialize_current().unwrap().info.uuid.unwrap();
        Self {
            state: state.name().to_owned(),
            cluster: uuid::Uuid::from_bytes(uuid.to_uuid().unwrap().bytes()),
        }
    }

    async fn gone(self, scene: &Scene) {
        scene.test.client.database(&self.state).drop().await.unwrap();
    }
}

/// A client whose server never answers.
async fn nowhere() -> Client {
    let mut options = ClientOptions::parse("mongodb://127.0.0.1:1/?directConnection=true").await.unwrap();
    options.server_selection_timeout = Some(Duration::from_millis(100));
    Client::with_options(options).unwrap()
}

/// P5: a worker of another cluster keeps a command only for a short pause, and then the command reaches the
/// worker of the right cluster.
#[tokio::test]
async fn another_clusters_command_is_left_to_its_worker() {
    let scene = Scene::set().await;
    let (here, there) = (Elsewhere::made(&scene, "here").await, Elsewhere::made(&scene, "there").await);
    scene.place("o-1", [1]).await;
    let recorder = Recorder::default();
    let mut wrong = scene.start_at_state(&there.state, recorder.clone());
    scene.send("o-1", here.cluster).await;
    assert_eq!(put_back(&mut wrong).await, Left::OtherCluster);
    assert!(recorder.delivered().is_empty());

    let mut right = scene.start_at_state(&here.state, recorder.clone());
    assert_eq!(right.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1]);
    wrong.running.stop().await;
    right.running.stop().await;
    here.gone(&scene).await;
    there.gone(&scene).await;
    scene.strike().await;
}

/// Without a collection of positions, a worker has no UUID to compare with the UUID in a command. Only the
/// absence of the command's document shows that the command is from another cluster.
#[tokio::test]
async fn a_command_is_not_swallowed_by_an_empty_mongodb() {
    let scene = Scene::set().await;
    let here = Elsewhere::made(&scene, "here").await;
    let unnamed = format!("{}_unnamed", scene.test.database.name());
    let mut worker = scene.start_at_state(&unnamed, Recorder::default());
    scene.send("not there", here.cluster).await;
    assert_eq!(put_back(&mut worker).await, Left::OtherCluster);
    scene.place("there", [1]).await;
    scene.send("there", here.cluster).await;
    assert_eq!(worker.finished().await, Processed::Done);
    scene.command("of a version that names no cluster").await;
    assert_eq!(worker.finished().await, Processed::Gone);
    worker.running.stop().await;
    here.gone(&scene).await;
    scene.strike().await;
}

/// A recreated collection of positions has another UUID. A command with the new UUID still belongs to this
/// cluster.
#[tokio::test]
async fn a_worker_learns_its_clusters_new_name() {
    let scene = Scene::set().await;
    let before = Elsewhere::made(&scene, "here").await;
    scene.place("o-1", [1]).await;
    let mut worker = scene.start_at_state(&before.state, Recorder::default());
    assert!(worker.running.ready().await);
    scene.test.client.database(&before.state).collection::<Document>("positions").drop().await.unwrap();
    let after = Elsewhere::made(&scene, "here").await;
    assert_ne!(before.cluster, after.cluster);
    scene.send("o-1", after.cluster).await;
    assert_eq!(worker.finished().await, Processed::Done);
    worker.running.stop().await;
    after.gone(&scene).await;
    scene.strike().await;
}

/// A forged command is harmless: commands of an unknown cluster wait separately, and take no room from other
/// commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_forged_commands_delay_no_other() {
    const FORGED: usize = 1_000;
    let scene = Scene::set().await;
    let here = Elsewhere::made(&scene, "here").await;
    scene.place("o-1", [1]).await;
    let forged = (0..FORGED).map(|n| {
        let document = scene.document(format!("forged-{n}"));
        ProcessDocumentMessages::new(document, Reason::Sweep).of_cluster(Some(uuid::Uuid::now_v7()))
    });
    assert!(scene.commands.send(forged.collect()).await.iter().all(Result::is_ok));
    scene.send("o-1", here.cluster).await;

    let mut worker = scene.start_at_state(&here.state, Recorder::default());
    let mut put_back = 0;
    loop {
        match worker.events.recv().await {
            Ok(DispatcherEvent::PutBack { .. }) => put_back += 1,
            Ok(DispatcherEvent::Finished { processed, .. }) => break assert_eq!(processed, Processed::Done),
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
    // If forged commands took room, the worker would have to requeue all of them before it could take the
    // command of its own cluster.
    assert!(put_back < FORGED, "{put_back}");
    worker.running.stop().await;
    here.gone(&scene).await;
    scene.strike().await;
}

/// A worker without MongoDB takes no command at all.
#[tokio::test]
async fn a_worker_that_cannot_reach_mongodb_takes_no_commands() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    scene.command("o-1").await;
    let mut blind = scene.start_by(nowhere().await, "document_outbox", Recorder::default());
    let status = until(&blind.running, |status| {
        status.unable.as_ref().is_some_and(|why| !why.contains("not answered yet"))
    })
    .await;
    assert!(status.not_ready.iter().any(|why| why.contains("MongoDB cannot be reached")), "{status:?}");
    assert!(!blind.running.is_ready());

    let mut worker = scene.start(Recorder::default());
    assert_eq!(worker.finished().await, Processed::Done);
    assert!(blind.events.try_recv().is_err(), "it took nothing");
    blind.running.stop().await;
    worker.running.stop().await;
    scene.strike().await;
}

/// MongoDB becomes unreachable while a worker has commands: the worker returns them, and takes commands
/// again once MongoDB answers.
#[tokio::test]
async fn commands_are_requeued_while_mongodb_is_unreachable() {
    let scene = Scene::set().await;
    let server = host(&uri("OUTBOX_MONGODB_URI").replace("mongodb://", ""));
    let network = Network::to(&format!("mongodb://x@{server}/"));
    let address = host(&network.uri());
    let mut options =
        ClientOptions::parse(format!("mongodb://{address}/?directConnection=true")).await.unwrap();
    options.server_selection_timeout = Some(Duration::from_millis(300));
    options.connect_timeout = Some(Duration::from_millis(300));
    options.heartbeat_freq = Some(Duration::from_millis(500));
    let client = Client::with_options(options).unwrap();
    scene.place("o-1", [1]).await;
    let mut worker = scene.start_by(client, "document_outbox", Recorder::default());
    assert!(worker.running.ready().await);

    network.swallow(true);
    network.cut();
    scene.command("o-1").await;
    assert!(matches!(put_back(&mut worker).await, Left::MongoDb(_)));
    until(&worker.running, |status| status.unable.is_some() && status.consumer.state == "paused").await;

    network.cut();
    network.swallow(false);
    assert_eq!(worker.finished().await, Processed::Done);
    let status = until(&worker.running, |status| status.not_ready.is_empty()).await;
    assert_eq!(status.consumer.rebuilds, 0, "RabbitMQ was available throughout");
    worker.running.stop().await;
    scene.strike().await;
}

/// *A worker that had only useless commands for a minute stops taking commands, is not ready, and
/// takes one command a minute as a test.*
#[tokio::test]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_worker_with_foreign_commands_alone_stops_taking() {
    let scene = Scene::set().await;
    let (here, there) = (Elsewhere::made(&scene, "here").await, Elsewhere::made(&scene, "there").await);
    let mut wrong = scene.start_at_state(&there.state, Recorder::default());
    for n in 0..20 {
        scene.place(&format!("o-{n}"), [1]).await;
        scene.send(&format!("o-{n}"), here.cluster).await;
    }
    let stopped = async {
        loop {
            put_back(&mut wrong).await;
            if wrong.running.status().snapshot().unable.is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(LONG * 3, stopped)
        .await
        .expect("the worker stops taking commands after a minute and some slow answers");
    let status = until(&wrong.running, |status| status.consumer.state == "paused").await;
    assert!(status.not_ready.iter().any(|why| why.contains("another MongoDB cluster")), "{status:?}");

    let mut right = scene.start_at_state(&here.state, Recorder::default());
    for _ in 0..20 {
        assert_eq!(right.finished().await, Processed::Done);
    }
    // The worker takes one command per minute as a test. The next test command is from the worker's own
    // cluster.
    scene.place("own", [1]).await;
    right.running.stop().await;
    scene.send("own", there.cluster).await;
    assert_eq!(tokio::time::timeout(LONG * 3, wrong.finished()).await.unwrap(), Processed::Done);
    until(&wrong.running, |status| status.not_ready.is_empty()).await;
    wrong.running.stop().await;
    here.gone(&scene).await;
    there.gone(&scene).await;
    scene.strike().await;
}

/// P5: if one worker's MongoDB can't be reached, or belongs to another cluster, every command goes to the
/// other worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_worker_without_its_mongodb_keeps_no_command() {
    for is_reached in [false, true] {
        let scene = Scene::set().await;
        let here = Elsewhere::made(&scene, "here").await;
        let another = Client::with_uri_str(uri("OUTBOX_TEST_MONGODB_RS3_URI")).await.unwrap();
        let blind = if is_reached { another } else { nowhere().await };
        let useless = scene.start_by(blind, &here.state, Recorder::default());
        let recorder = Recorder::default();
        let worker = scene.start_at_state(&here.state, recorder.clone());

        // The entries of 60 documents have dates. The entries of 60 other documents have no dates, as if
        // another program had written them.
        for n in 0..60 {
            scene.place(&format!("dated-{n}"), [1]).await;
            let entry = doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 } };
            let undated = doc! { "_id": format!("undated-{n}"), "outbox": [entry] };
            scene.test.orders().insert_one(undated).await.unwrap();
            scene.send(&format!("dated-{n}"), here.cluster).await;
            scene.send(&format!("undated-{n}"), here.cluster).await;
        }
        recorder.wait_delivered(120).await;
        scene.test.wait_until_all_are_empty().await;
        assert_eq!(recorder.delivered().len(), 120, "each once");
        useless.running.stop().await;
        worker.running.stop().await;
        here.gone(&scene).await;
        scene.strike().await;
    }
}

/// Tests RabbitMQ itself: a command that no dispatcher takes is gone after its lifetime, and its queue is
/// empty.
#[tokio::test]
async fn a_command_expires_if_no_dispatcher_takes_it() {
    let scene = Scene::set().await;
    let body = ProcessDocumentMessages::new(scene.document("o-1"), Reason::Sweep).to_json();
    let publication = Publication {
        exchange: scene.name.clone(),
        routing_key: COMMANDS_ROUTING_KEY.into(),
        message_id: Uuid::new().to_string(),
        content_type: "application/json".into(),
        body,
        expiration: Some(Duration::from_millis(100)),
        ..Publication::default()
    };
    assert_eq!(scene.publisher.publish(vec![publication]).await, [Published::Confirmed]);
    let gone = async {
        while scene.depth().await > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("it expires");

    scene.command("o-1").await;
    let got = scene.outside.basic_get(scene.name.clone().into(), BasicGetOptions::default()).await.unwrap();
    let properties = got.expect("a new command is in the queue").delivery.properties;
    let lifetime = document_outbox::command::COMMAND_LIFETIME.as_millis().to_string();
    assert_eq!(properties.expiration().as_ref().map(std::string::ToString::to_string), Some(lifetime));
    scene.strike().await;
}

//! Tests an oplog that is too short, on a separate server.

use std::time::{Duration, Instant};

use mongodb::{
    Client,
    bson::{Binary, Document, Timestamp, doc, spec::BinarySubtype},
    options::{ClientOptions, ServerAddress},
};
use outbox_rescuer::{RescueEvent, StartedFrom, Warning};

use crate::{private_mongod::PrivateMongod, support::*};

/// A replica set with one member and the shortest possible oplog. The server ends when this value is dropped
/// or the test's process ends.
struct ShortOplog {
    server: PrivateMongod,
    uri: String,
}

impl ShortOplog {
    async fn start() -> Self {
        // The oplog is only cut at checkpoints, so checkpoints are made every second.
        let server = PrivateMongod::start(&[
            "--replSet",
            "rs0",
            "--oplogSize",
            "1",
            "--syncdelay",
            "1",
            "--setParameter",
            "shutdownTimeoutMillisForSignaledShutdown=0",
        ]);
        let uri = format!("mongodb://127.0.0.1:{}/?replicaSet=rs0", server.port);
        let short = Self { server, uri };
        short.initiate().await;
        short
    }

    async fn initiate(&self) {
        let PrivateMongod { directory, port, .. } = &self.server;
        let host = ServerAddress::Tcp { host: "127.0.0.1".into(), port: Some(*port) };
        let options = ClientOptions::builder().hosts(vec![host]).direct_connection(true).build();
        let admin = Client::with_options(options).unwrap().database("admin");
        let member = doc! { "_id": 0, "host": format!("127.0.0.1:{port}") };
        let set = doc! { "replSetInitiate": { "_id": "rs0", "members": [member] } };
        admin.run_command(set).await.unwrap_or_else(|error| panic!("{error}, see {}", directory.display()));
        let begun = Instant::now();
        while !admin.run_command(doc! { "hello": 1 }).await.unwrap().get_bool("isWritablePrimary").unwrap() {
            assert!(begun.elapsed() < PATIENCE, "it doesn't become primary");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Writes to MongoDB until the oplog no longer reaches back to this time.
async fn roll_over(world: &World, time: Timestamp) {
    let filler = world.state.collection::<Document>("filler");
    let bytes = Binary { subtype: BinarySubtype::Generic, bytes: vec![7; 4 << 20] };
    let oplog = world.client.database("local").collection::<Document>("oplog.rs");
    let begun = Instant::now();
    loop {
        filler.insert_one(doc! { "_id": 1, "bytes": &bytes }).await.unwrap();
        filler.delete_one(doc! { "_id": 1 }).await.unwrap();
        let first = oplog.find_one(doc! {}).sort(doc! { "$natural": 1 }).await.unwrap().unwrap();
        if first.get_timestamp("ts").unwrap() > time {
            return;
        }
        assert!(begun.elapsed() < PATIENCE * 4, "the oplog still begins before {time}");
    }
}

/// These tests stop, block or boot a server.
mod outage {
    use super::*;

    /// P7: no message is lost if the position is lost. In this test the server itself has lost the
    /// history.
    #[tokio::test]
    async fn an_absence_longer_than_the_oplog_loses_nothing() {
        let server = ShortOplog::start().await;
        let (world, commands) = (World::on(server.uri.clone()).await, Recorder::new());
        let orders = world.indexed_orders().await;
        let mut running = world.started(&commands, world.settings()).await;
        orders.insert_one(doc! { "_id": "before", "outbox": [minimal()] }).await.unwrap();
        running.page().await;
        running.stop().await.unwrap();
        let position = world.position().await;

        orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
        orders.insert_one(doc! { "_id": "dated", "outbox": [dated(0, 0)] }).await.unwrap();
        roll_over(&world, position.get_timestamp("cluster_time").unwrap()).await;

        // The delay is longer than this oplog can ever cover.
        let delay = Duration::from_hours(1);
        let mut running =
            world.start(&commands, world.settings().with(|settings| settings.delay = delay)).await;
        let (mut lost, mut warned, mut from) = (None, None, None);
        running
            .wait("a lost position, a warning, and a new start", |event| {
                match event {
                    RescueEvent::PositionLost { code, .. } => lost = *code,
                    RescueEvent::Warning { warning, .. } => warned = Some(warning.clone()),
                    RescueEvent::Opened { from: opened } => from = Some(*opened),
                    _ => {}
                }
                (lost.is_some() && warned.is_some() && from.is_some()).then_some(())
            })
            .await;
        assert_eq!((lost, from), (Some(286), Some(StartedFrom::AfterLoss)));
        assert!(
            matches!(warned, Some(Warning::OplogShort { delay: told, .. }) if told == delay),
            "{warned:?}"
        );
        while commands.distinct() < 2 {
            running.swept().await;
        }
        running.stop().await.unwrap();

        // The first sweep may happen while the dated message is too young.
        let mut running =
            world.start(&commands, world.settings().with(|settings| settings.sweep_interval = DELAY)).await;
        while commands.distinct() < 3 {
            running.swept().await;
        }
        orders.insert_one(doc! { "_id": "after", "outbox": [minimal()] }).await.unwrap();
        while commands.distinct() < 4 {
            running.page().await;
        }
        running.stop().await.unwrap();
    }
}

//! An oplog that is too short, on a server of the test's own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mongodb::{
    Client,
    bson::{Binary, Document, Timestamp, doc, spec::BinarySubtype},
    options::{ClientOptions, ServerAddress},
};
use outbox_rescuer::{RescueEvent, Settings, StartedFrom, Warning};

use crate::support::*;

/// A replica set of one, with the shortest oplog there is; gone with this value, or with its process.
struct PrivateMongod {
    directory: PathBuf,
    guard: Child,
    uri: String,
}

impl PrivateMongod {
    async fn start() -> Self {
        crate::isolation::assert_in("outage");
        let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/services");
        let found = Command::new(services).arg("mongod").output().unwrap();
        let mongod = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("mongod"));
        std::fs::create_dir_all(&directory).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Waits for the end of its input, which comes however this process ends. The oplog is cut at checkpoints only, hence
        // one a second.
        let script = r#"
            "$1" --port "$2" --dbpath "$0" --logpath "$0/log" --replSet rs0 --oplogSize 1 --syncdelay 1 \
                --bind_ip 127.0.0.1 --nounixsocket --wiredTigerCacheSizeGB 0.25 --quiet \
                --setParameter shutdownTimeoutMillisForSignaledShutdown=0 &
            cat; kill -9 $!; wait; rm -rf "$0""#;
        let guard = Command::new("sh")
            .args(["-c", script])
            .arg(&directory)
            .args([&mongod, &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { directory, guard, uri: format!("mongodb://127.0.0.1:{port}/?replicaSet=rs0") };
        server.initiate(port).await;
        server
    }

    async fn initiate(&self, port: u16) {
        let host = ServerAddress::Tcp { host: "127.0.0.1".into(), port: Some(port) };
        let options = ClientOptions::builder().hosts(vec![host]).direct_connection(true).build();
        let admin = Client::with_options(options).unwrap().database("admin");
        let member = doc! { "_id": 0, "host": format!("127.0.0.1:{port}") };
        let set = doc! { "replSetInitiate": { "_id": "rs0", "members": [member] } };
        admin
            .run_command(set)
            .await
            .unwrap_or_else(|error| panic!("{error}, see {}", self.directory.display()));
        let begun = Instant::now();
        while !admin.run_command(doc! { "hello": 1 }).await.unwrap().get_bool("isWritablePrimary").unwrap() {
            assert!(begun.elapsed() < PATIENCE, "it doesn't become primary");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for PrivateMongod {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Writes until the oplog begins after this time.
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

/// These stop, block or boot a server.
mod outage {
    use super::*;

    /// P7: a lost position loses nothing. Here it is the server itself that has lost the history.
    #[tokio::test]
    async fn an_absence_longer_than_the_oplog_loses_nothing() {
        let server = PrivateMongod::start().await;
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

        // A delay that this oplog will never reach back to.
        let delay = Duration::from_hours(1);
        let mut running = world.start(&commands, Settings { delay, ..world.settings() }).await;
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

        let mut running = world.start(&commands, world.settings()).await;
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

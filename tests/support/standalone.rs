//! A MongoDB that is no replica set, of a test's own.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use mongodb::{Client, bson::doc};

use crate::support::LONG;

/// Gone with this value, or with its process.
pub(crate) struct Standalone {
    guard: Child,
    pub(crate) uri: String,
}

impl Standalone {
    pub(crate) async fn start() -> Self {
        crate::isolation::assert_in("outage");
        let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let found = Command::new(services).arg("mongod").output().unwrap();
        let mongod = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let name = format!("standalone-{}", uuid::Uuid::now_v7().simple());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Waits for the end of its input, which comes however this process ends.
        let script = r#"
            "$1" --port "$2" --dbpath "$0" --logpath "$0/log" --bind_ip 127.0.0.1 --nounixsocket --quiet \
                --wiredTigerCacheSizeGB 0.25 --setParameter diagnosticDataCollectionEnabled=false &
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
        let server = Self { guard, uri: format!("mongodb://127.0.0.1:{port}/?directConnection=true") };
        server.wait().await;
        server
    }

    /// Until it answers.
    async fn wait(&self) {
        let client = Client::with_uri_str(&self.uri).await.unwrap();
        let answers = async {
            while client.database("admin").run_command(doc! { "ping": 1 }).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LONG, answers).await.expect("the server answers");
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

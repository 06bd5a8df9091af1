//! Runs a MongoDB that is not a replica set for one test.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::time::Duration;

use mongodb::{Client, bson::doc};

use crate::{private_mongod::PrivateMongod, support::LONG};

/// A server that is removed with this value or with the process.
pub(crate) struct Standalone {
    server: PrivateMongod,
    pub(crate) uri: String,
}

impl Standalone {
    pub(crate) async fn start() -> Self {
        let server = PrivateMongod::start(&["--setParameter", "diagnosticDataCollectionEnabled=false"]);
        let uri = format!("mongodb://127.0.0.1:{}/?directConnection=true", server.port);
        let standalone = Self { server, uri };
        standalone.wait().await;
        standalone
    }

    /// Waits until the server answers.
    async fn wait(&self) {
        let client = Client::with_uri_str(&self.uri).await.unwrap();
        let answers = async {
            while client.database("admin").run_command(doc! { "ping": 1 }).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let answered = tokio::time::timeout(LONG, answers).await;
        answered.unwrap_or_else(|_| panic!("no answer, see {}", self.server.directory.display()));
    }
}

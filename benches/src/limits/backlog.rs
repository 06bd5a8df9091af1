//! Creates documents with undelivered messages, and waits until all of the messages are delivered.

use std::{
    fs,
    time::{Duration, Instant},
};

use mongodb::{
    Collection,
    bson::{Binary, Bson, DateTime, Document, doc, spec::BinarySubtype},
};

use super::received::Received;
use crate::{bed::Bed, result::Result};

/// Maximum time that a backlog may take before the measurement fails.
const PATIENCE: Duration = Duration::from_mins(40);

/// An unclaimed entry that has been due for a minute. Its message carries a number, and a text that fills it up.
pub(crate) fn due_entry(number: u64, filling: usize) -> Result<Document> {
    entry(number, filling, DateTime::from_millis(DateTime::now().timestamp_millis() - 60_000))
}

/// The same entry, sent just now.
pub(crate) fn fresh_entry(number: u64, filling: usize) -> Result<Document> {
    entry(number, filling, DateTime::now())
}

fn entry(number: u64, filling: usize, sent: DateTime) -> Result<Document> {
    let id = uuid::Uuid::now_v7().into_bytes().to_vec();
    Ok(doc! {
        "id": Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: id }),
        "type": "order.changed",
        "payload": { "order": format!("order-{number:08}"), "total": 1_i64, "at": i64::try_from(number)?, "note": "n".repeat(filling) },
        "created_at": sent,
        "available_at": sent,
    })
}

/// Waits until every message is received and every outbox is empty. Returns the time from `began`.
pub(crate) async fn is_burnt_down(
    bed: &Bed,
    received: &Received,
    messages: u64,
    collections: &[Collection<Document>],
    began: Instant,
) -> Result<Duration> {
    let done = async {
        while received.count() < messages {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for collection in collections {
            bed.settled(collection).await?;
        }
        Ok(began.elapsed())
    };
    let late = |_| format!("{} of {messages} messages were received in {PATIENCE:?}", received.count());
    tokio::time::timeout(PATIENCE, done).await.map_err(late)?
}

/// The memory limit of a container in one of the manifests, in MiB.
pub(crate) fn manifest_memory_mib(service: &str) -> Result<f64> {
    let file = format!("{}/../deploy/kubernetes/{service}.yaml", env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(&file)?;
    let limits = manifest.split("limits:").nth(1).ok_or_else(|| format!("{file} has no limits"))?;
    let memory = limits.lines().find_map(|line| line.trim().strip_prefix("memory:"));
    let memory = memory.and_then(|memory| memory.trim().strip_suffix("Mi")?.parse().ok());
    memory.ok_or_else(|| format!("{file} has no memory limit in Mi").into())
}

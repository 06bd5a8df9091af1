//! Counts the work of the servers and of this process.

use std::{collections::BTreeMap, fs};

use mongodb::bson::{Bson, Document, Timestamp, doc};

use crate::{bed::Bed, result::Result};

/// The counts at one moment, or the differences between two moments.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Counters {
    /// Number of MongoDB commands that read or write documents.
    pub(crate) commands: i64,
    /// Number of documents inserted, updated and deleted, including those that the servers write themselves.
    pub(crate) documents_written: i64,
    pub(crate) mongodb_bytes_sent: i64,
    pub(crate) oplog_bytes: i64,
    /// Number of messages in the queue that receives all messages.
    pub(crate) messages_published: i64,
    /// Processor time in seconds, by process. Servers that don't run on this machine are left out.
    pub(crate) cpu_seconds: BTreeMap<&'static str, f64>,
    /// Peak resident memory in MiB, by process. The value of this process is the peak since the counting
    /// began.
    pub(crate) peak_memory_mib: BTreeMap<&'static str, f64>,
    #[serde(skip)]
    at: Option<Timestamp>,
}

impl Counters {
    pub(crate) async fn take(bed: &Bed) -> Result<Self> {
        let status = bed.client.database("admin").run_command(doc! { "serverStatus": 1 }).await?;
        let counts = [
            "update",
            "insert",
            "delete",
            "find",
            "getMore",
            "aggregate",
            "findAndModify",
            "commitTransaction",
        ];
        let commands =
            counts.iter().map(|name| number(&status, &["metrics", "commands", name, "total"])).sum();
        let written =
            ["inserted", "updated", "deleted"].map(|name| number(&status, &["metrics", "document", name]));

        let mut cpu_seconds = BTreeMap::new();
        for (name, pid) in processes() {
            if let Some(seconds) = cpu(&pid) {
                cpu_seconds.insert(name, seconds);
            }
        }

        // Writing 5 resets the peak. If that is not permitted, the peak of the whole run is reported.
        let _ = fs::write("/proc/self/clear_refs", "5");

        Ok(Self {
            commands,
            documents_written: written.iter().sum(),
            mongodb_bytes_sent: number(&status, &["network", "bytesOut"]),
            messages_published: i64::try_from(bed.waiting(&bed.queue()).await?).unwrap_or(i64::MAX),
            cpu_seconds,
            at: status.get_timestamp("operationTime").ok(),
            ..Self::default()
        })
    }

    /// Returns the differences between these counts and the current ones.
    pub(crate) async fn until_now(self, bed: &Bed) -> Result<Self> {
        let peaks =
            processes().into_iter().filter_map(|(name, pid)| Some((name, peak_memory(&pid)?))).collect();
        let now = Self::take(bed).await?;
        let cpu =
            now.cpu_seconds.iter().filter_map(|(name, s)| Some((*name, s - self.cpu_seconds.get(name)?)));
        Ok(Self {
            commands: now.commands - self.commands,
            documents_written: now.documents_written - self.documents_written,
            mongodb_bytes_sent: now.mongodb_bytes_sent - self.mongodb_bytes_sent,
            oplog_bytes: oplog_bytes(bed, self.at, now.at).await?,
            messages_published: now.messages_published - self.messages_published,
            cpu_seconds: cpu.collect(),
            peak_memory_mib: peaks,
            at: None,
        })
    }
}

fn number(status: &Document, path: &[&str]) -> i64 {
    let mut value = Some(&Bson::Null);
    let mut document = Some(status);
    for name in path {
        value = document.and_then(|document| document.get(name));
        document = value.and_then(Bson::as_document);
    }
    match value {
        Some(Bson::Int32(number)) => (*number).into(),
        Some(Bson::Int64(number)) => *number,
        #[expect(
            clippy::cast_possible_truncation,
            reason = "counters are whole numbers, whatever their type"
        )]
        Some(Bson::Double(number)) => *number as i64,
        _ => 0,
    }
}

async fn oplog_bytes(bed: &Bed, from: Option<Timestamp>, to: Option<Timestamp>) -> Result<i64> {
    let stages = [
        doc! { "$match": { "ts": { "$gt": from, "$lte": to } } },
        doc! { "$group": { "_id": null, "bytes": { "$sum": { "$bsonSize": "$$ROOT" } } } },
    ];
    let oplog = bed.client.database("local").collection::<Document>("oplog.rs");
    let mut found = oplog.aggregate(stages).await?;
    if !found.advance().await? {
        return Ok(0);
    }
    Ok(number(&found.deserialize_current()?, &["bytes"]))
}

/// Returns this process, and the servers if scripts/services runs them on this machine.
fn processes() -> Vec<(&'static str, String)> {
    let mut processes = vec![("bench", "self".to_owned())];
    let Ok(directory) = std::env::var("OUTBOX_TEST_SERVICES_DIR") else { return processes };
    for (name, variable) in [("mongod", "OUTBOX_MONGODB_URI"), ("rabbitmq", "OUTBOX_RABBITMQ_URI")] {
        let file = format!("{directory}/{name}-{}.pid", port(variable));
        if let Ok(pid) = fs::read_to_string(file) {
            processes.push((name, pid.trim().to_owned()));
        }
    }
    processes
}

/// Returns the port of the first host in a URI, or an empty text if there is none.
fn port(variable: &str) -> String {
    let uri = std::env::var(variable).unwrap_or_default();
    let host = uri.rsplit('@').next().unwrap_or_default().trim_start_matches("mongodb://");
    let host = host.split('/').next().unwrap_or_default();
    host.rsplit(':').next().unwrap_or_default().to_owned()
}

/// Returns the processor time of a process in seconds, for all threads that still exist.
pub(crate) fn cpu(pid: &str) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    // A tick is 10 ms on every Linux.
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// Returns the peak resident memory so far, in MiB.
pub(crate) fn peak_memory(pid: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

//! Measures how a million stranded documents are burnt down by a rescuer without a position and by dispatchers.

use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};

use super::{
    backlog::{due_entry, is_burnt_down},
    finding::Finding,
    received::Received,
    services::{Services, arrived, peak_memory},
};
use crate::{
    bed::{Bed, id},
    counters::Counters,
    result::Result,
};

const LIMIT: &str = "stranded";

pub(crate) async fn measure(bed: &Bed) -> Result<Vec<Finding>> {
    let count: u64 = bed.scale.pick(1_000, 1_000_000);
    eprintln!("{LIMIT}: {count} documents");
    let collection = strand(bed, count).await?;
    let received = Received::start(bed, count).await?;
    let before = Counters::take(bed).await?;

    let began = Instant::now();
    let services = Services::start(bed, bed.name())?;
    let took = is_burnt_down(bed, &received, count, std::slice::from_ref(&collection), began).await?;

    let counted = before.until_now(bed).await?;
    let mut findings = Vec::new();
    let messages = count as f64;
    let rate = messages / took.as_secs_f64();
    let time = format!("{:.0} s, {rate:.0} a second", took.as_secs_f64());
    findings.push(Finding::figure(LIMIT, format!("{count} documents, one rescuer, one dispatcher"), time));
    findings.push(arrived(LIMIT, &received, count));
    for (name, service) in services.both() {
        findings.push(peak_memory(LIMIT, name, service)?);
        let cpu = service.cpu_seconds()? / messages * 1e3;
        findings.push(Finding::figure(
            LIMIT,
            format!("processor time of the {name}"),
            format!("{cpu:.3} ms a message"),
        ));
    }
    for name in ["mongod", "rabbitmq"] {
        if let Some(seconds) = counted.cpu_seconds.get(name) {
            let cpu = format!("{:.3} ms a message", seconds / messages * 1e3);
            findings.push(Finding::figure(LIMIT, format!("processor time of {name}"), cpu));
        }
    }
    let oplog = format!("{:.0} bytes a message", counted.oplog_bytes as f64 / messages);
    findings.push(Finding::figure(LIMIT, "oplog", oplog));

    services.stop().await?;
    Ok(findings)
}

async fn strand(bed: &Bed, count: u64) -> Result<mongodb::Collection<Document>> {
    let collection = bed.database.collection::<Document>("stranded");
    collection.create_indexes(document_outbox::store::indexes()).await?;
    let numbers: Vec<u64> = (0..count).collect();
    for numbers in numbers.chunks(5_000) {
        let mut documents = Vec::with_capacity(numbers.len());
        for number in numbers {
            let entry = due_entry(*number, 120)?;
            documents.push(doc! { "_id": id(usize::try_from(*number)?), "total": 1_i64, "outbox": [entry] });
        }
        collection.insert_many(documents).await?;
    }
    bed.client.database("admin").run_command(doc! { "fsync": 1 }).await?;
    // Writes of the set-up should not be in the way of what is measured.
    tokio::time::sleep(Duration::from_secs(5)).await;
    Ok(collection)
}

//! Measures a backlog of documents that are near MongoDB's limit of 16 MiB, against the memory of the manifests.

use std::time::Instant;

use mongodb::bson::doc;

use super::{
    backlog::{due_entry, is_burnt_down},
    finding::Finding,
    received::Received,
    services::{Services, arrived, peak_memory},
};
use crate::{
    bed::{Bed, id},
    result::Result,
};

const LIMIT: &str = "large";
/// Messages of a document, and the size of each.
const MESSAGES: u64 = 12;
const BYTES: usize = 1024 * 1024;

pub(crate) async fn measure(bed: &Bed) -> Result<Vec<Finding>> {
    let documents: u64 = bed.scale.pick(10, 250);
    let described = format!("{documents} documents with {MESSAGES} messages of 1 MiB each");
    eprintln!("{LIMIT}: {described}");

    let collection = bed.database.collection("large");
    collection.create_indexes(document_outbox::store::indexes()).await?;
    for document in 0..documents {
        let entries =
            (0..MESSAGES).map(|n| due_entry(document * MESSAGES + n, BYTES)).collect::<Result<Vec<_>>>()?;
        collection.insert_one(doc! { "_id": id(usize::try_from(document)?), "outbox": entries }).await?;
    }
    let count = documents * MESSAGES;
    let received = Received::start(bed, count).await?;

    let began = Instant::now();
    let services = Services::start(bed, bed.name())?;
    let took = is_burnt_down(bed, &received, count, std::slice::from_ref(&collection), began).await?;

    let mut findings = Vec::new();
    let mib = count as f64 / took.as_secs_f64();
    findings.push(Finding::figure(
        LIMIT,
        described,
        format!("{:.0} s, {mib:.0} MiB a second", took.as_secs_f64()),
    ));
    findings.push(arrived(LIMIT, &received, count));
    for (name, service) in services.both() {
        findings.push(peak_memory(LIMIT, name, service)?);
    }
    services.stop().await?;
    Ok(findings)
}

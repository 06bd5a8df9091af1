//! Measures a backlog of documents that are near MongoDB's limit of 16 MiB, against the memory of the manifests.

use std::time::Instant;

use mongodb::bson::doc;

use super::{
    backlog::{due_entry, is_burnt_down, manifest_memory_mib},
    finding::Finding,
    received::Received,
};
use crate::{
    bed::{Bed, id},
    result::Result,
    services::Service,
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
    let dispatcher_settings = [("MESSAGES_EXCHANGE", bed.exchange())];
    let dispatcher = Service::start(bed, "outbox-dispatcher", bed.name(), &dispatcher_settings)?;
    let rescuer = Service::start(bed, "outbox-rescuer", bed.name(), &[("DELAY", "2s".into())])?;
    let took = is_burnt_down(bed, &received, count, std::slice::from_ref(&collection), began).await?;

    let mut findings = Vec::new();
    let mib = count as f64 / took.as_secs_f64();
    findings.push(Finding::figure(
        LIMIT,
        described,
        format!("{:.0} s, {mib:.0} MiB a second", took.as_secs_f64()),
    ));
    findings.push(
        Finding::figure(
            LIMIT,
            "messages that arrived",
            format!("{}, {} of them twice", received.count(), received.repeats()),
        )
        .bound("each at least once", received.is_exactly(count)),
    );
    for (name, service) in [("rescuer", &rescuer), ("dispatcher", &dispatcher)] {
        let (peak, limit) = (service.peak_memory_mib()?, manifest_memory_mib(name)?);
        findings.push(
            Finding::figure(LIMIT, format!("memory of the {name} at its peak"), format!("{peak:.0} MiB"))
                .bound(format!("{limit:.0} MiB, of the manifest"), peak < limit),
        );
    }
    rescuer.stop().await?;
    dispatcher.stop().await?;
    Ok(findings)
}

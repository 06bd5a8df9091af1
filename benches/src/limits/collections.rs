//! Measures a rescuer that watches 500 collections in 100 databases.

use std::time::{Duration, Instant};

use mongodb::{
    Collection, Database,
    bson::{Document, doc},
};

use super::{
    backlog::{due_entry, fresh_entry, is_burnt_down},
    finding::Finding,
    received::Received,
    services::{Services, arrived, peak_memory},
};
use crate::{
    bed::{Bed, id},
    result::Result,
};

const LIMIT: &str = "collections";
const COLLECTIONS_OF_A_DATABASE: usize = 5;
const DOCUMENTS_OF_A_COLLECTION: u64 = 20;

pub(crate) async fn measure(bed: &Bed) -> Result<Vec<Finding>> {
    let databases: usize = bed.scale.pick(10, 100);
    let databases: Vec<_> =
        (0..databases).map(|n| bed.client.database(&format!("{}_c{n}", bed.name()))).collect();
    let measured = in_databases(bed, &databases).await;
    for database in &databases {
        database.drop().await?;
    }
    measured
}

async fn in_databases(bed: &Bed, databases: &[Database]) -> Result<Vec<Finding>> {
    let collections = fill(databases).await?;
    let count = collections.len() as u64 * DOCUMENTS_OF_A_COLLECTION;
    let described = format!("{} collections in {} databases", collections.len(), databases.len());
    eprintln!("{LIMIT}: {described}");
    // One more message is sent later, to see how late it arrives.
    let received = Received::start(bed, count + 1).await?;

    let began = Instant::now();
    let watched = format!("{}_c*", bed.name());
    let services = Services::start(bed, &watched)?;
    let took = is_burnt_down(bed, &received, count, &collections, began).await?;

    let mut findings = Vec::new();
    let time = format!("{:.1} s", took.as_secs_f64());
    findings.push(Finding::figure(
        LIMIT,
        format!("{described}: from the start until {count} stranded messages have arrived"),
        time,
    ));

    // The sweep has found everything, so the processes have only their watch to keep.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, commands) = (services.rescuer.cpu_seconds()?, queries(bed).await?);
    let idle = Duration::from_secs(30);
    tokio::time::sleep(idle).await;
    let cpu = (services.rescuer.cpu_seconds()? - before) / idle.as_secs_f64() * 100.0;
    findings.push(Finding::figure(LIMIT, "the idle rescuer, of a core", format!("{cpu:.1} %")));
    let asked = (queries(bed).await? - commands) as f64 / idle.as_secs_f64();
    findings.push(Finding::figure(LIMIT, "reads of MongoDB while idle", format!("{asked:.0} a second")));

    let last = collections.last().ok_or("there is no collection")?;
    let left = Instant::now();
    let entry = doc! { "$push": { "outbox": fresh_entry(count, 120)? } };
    last.update_one(doc! { "_id": id(0) }, entry).await?;
    let late = is_burnt_down(bed, &received, count + 1, std::slice::from_ref(last), left).await?;
    let late = format!("{:.2} s after its save, with a delay of 2 s", late.as_secs_f64());
    findings.push(Finding::figure(LIMIT, "a message left behind in the last collection", late));

    findings.push(arrived(LIMIT, &received, count + 1));
    findings.push(peak_memory(LIMIT, "rescuer", &services.rescuer)?);
    services.stop().await?;
    Ok(findings)
}

async fn fill(databases: &[Database]) -> Result<Vec<Collection<Document>>> {
    let mut collections = Vec::new();
    let mut number = 0;
    for database in databases {
        for n in 0..COLLECTIONS_OF_A_DATABASE {
            let collection = database.collection::<Document>(&format!("orders_{n}"));
            collection.create_indexes(document_outbox::store::indexes()).await?;
            let mut documents = Vec::new();
            for place in 0..DOCUMENTS_OF_A_COLLECTION {
                let place = usize::try_from(place)?;
                documents.push(doc! { "_id": id(place), "outbox": [due_entry(number, 120)?] });
                number += 1;
            }
            collection.insert_many(documents).await?;
            collections.push(collection);
        }
    }
    Ok(collections)
}

/// Number of find, getMore and aggregate commands that the server has executed.
async fn queries(bed: &Bed) -> Result<i64> {
    let status = bed.client.database("admin").run_command(doc! { "serverStatus": 1 }).await?;
    let commands = status.get_document("metrics")?.get_document("commands")?;
    let mut total = 0;
    for name in ["find", "getMore", "aggregate"] {
        total += commands.get_document(name)?.get_i64("total")?;
    }
    Ok(total)
}

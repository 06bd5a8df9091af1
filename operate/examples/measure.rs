//! Measures the operator's reads on a large collection, which is made first and dropped at the end.
//!
//! ```sh
//! eval "$(scripts/services env)"
//! cargo run --release -p outbox-operate --example measure            # 1,000,000 messages in 200,000 documents
//! cargo run --release -p outbox-operate --example measure -- 20000   # in 20,000 documents
//! ```

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use document_outbox::store::indexes;
use mongodb::{
    Client,
    bson::{DateTime, Document, Uuid, doc},
};
use outbox_operate::{
    Operator, OperatorSettings, Query,
    list::{ListRequest, Scan},
};

const DATABASE: &str = "measure_operate";
const MESSAGES: i64 = 5;
const BATCH: i64 = 1_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let documents: i64 = std::env::args().nth(1).map_or(Ok(200_000), |text| text.parse())?;
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    client.database(DATABASE).drop().await?;
    fill(&client, documents).await?;
    println!("{} messages in {documents} documents; {} KiB before", documents * MESSAGES, peak());

    let settings = OperatorSettings::new(vec![format!("{DATABASE}.*").parse()?])
        .with(|settings| settings.max_time = Duration::from_mins(5));
    let operator = Operator::new(client.clone(), settings);
    operator.now().await?;
    for query in ["state:dead", "state:due", "state:dead type:order.paid since:1h", ""] {
        measure_list(&operator, query).await?;
    }

    let began = Instant::now();
    let status = operator.status().await?;
    println!("status: {:?}, {} lines, peak {} KiB", began.elapsed(), status.counts.len(), peak());
    let began = Instant::now();
    let failures = operator.groups(&Query::default()).await?;
    println!("groups: {:?}, {} groups, peak {} KiB", began.elapsed(), failures.groups.len(), peak());

    client.database(DATABASE).drop().await?;
    Ok(())
}

/// Of the messages of each document, one is dead, one waits for its next attempt, and three are due.
async fn fill(client: &Client, documents: i64) -> Result<(), Box<dyn Error>> {
    let orders = client.database(DATABASE).collection::<Document>("orders");
    orders.create_indexes(indexes()).await?;
    let now = DateTime::now().timestamp_millis();
    for first in (0..documents).step_by(usize::try_from(BATCH)?) {
        let batch: Vec<Document> =
            (first..(first + BATCH).min(documents)).map(|number| document(number, now)).collect();
        orders.insert_many(batch).await?;
    }
    Ok(())
}

fn document(number: i64, now: i64) -> Document {
    let at = |millis: i64| DateTime::from_millis(now + millis);
    let mut outbox = Vec::new();
    for place in 0..MESSAGES {
        let mut entry = doc! {
            "id": Uuid::new(),
            "type": if place % 2 == 0 { "order.placed" } else { "order.paid" },
            "payload": { "order": number, "text": "x".repeat(200) },
            "created_at": at(-7_200_000 + number),
        };
        let error = format!("timed out after {number} ms");
        entry.extend(match place {
            0 => doc! { "dead_at": at(-3_600_000 + number), "dead_reason": "attempts_exhausted", "last_error": error },
            1 => doc! { "available_at": at(3_600_000 + number), "attempts": 3, "last_error": error },
            _ => doc! { "available_at": at(-1_800_000 + number) },
        });
        outbox.push(entry);
    }
    doc! { "_id": number, "outbox": outbox }
}

async fn measure_list(operator: &Operator, query: &str) -> Result<(), Box<dyn Error>> {
    let mut after = None;
    let mut times = Vec::new();
    for _ in 0..20 {
        let request = ListRequest { query: query.parse()?, limit: 50, after, scan: Scan::Never };
        let began = Instant::now();
        let page = operator.list(request).await?;
        times.push(began.elapsed());
        after = page.next;
    }
    let first = times[0];
    times.sort();
    println!("list {query:?}: first page {first:?}, median {:?} of 20 pages, peak {} KiB", times[10], peak());

    let began = Instant::now();
    let mut lister = operator.lister(query.parse()?, None, Scan::Never).await?;
    let mut count = 0_u64;
    while lister.next().await?.is_some() {
        count += 1;
    }
    println!("list {query:?} --all: {count} messages in {:?}, peak {} KiB", began.elapsed(), peak());
    Ok(())
}

/// The greatest memory of this process so far, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

//! Measures how fast the rescuer catches up, how late its commands are, and how much memory it uses.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use document_outbox::{SendFailure, command::ProcessDocumentMessages};
use futures::StreamExt;
use lapin::{
    options::{BasicConsumeOptions, QueueDeclareOptions},
    types::FieldTable,
};
use mongodb::{
    Client, Collection, Database,
    bson::{Document, Timestamp, Uuid, doc},
};
use outbox_rescuer::{
    CancellationToken, Commands, NamespacePattern, RescueEvent, Rescuer, Settings, pipelines,
};
use tokio::time::timeout;

use crate::{
    baseline::count_changes,
    bed::{Bed, id},
    contender::{Contender, Rates},
    counters::Counters,
    figure::Figure,
    report::{Goal, Report, Row},
    result::Result,
    services::Service,
    stats::{percentile, ratios},
};

/// The number of changes of each document in the backlog.
const ROUNDS: usize = 10;
/// Number of documents per second whose messages stay undelivered.
const LEFT_PER_SECOND: f64 = 100.0;

/// Takes commands and counts them.
#[derive(Default)]
struct CountedCommands(AtomicUsize);

#[async_trait]
impl Commands for CountedCommands {
    async fn send(
        &self,
        commands: Vec<ProcessDocumentMessages>,
    ) -> Vec<std::result::Result<(), SendFailure>> {
        self.0.fetch_add(commands.len(), Ordering::Relaxed);
        vec![Ok(()); commands.len()]
    }

    async fn ready(&self) {}
}

/// Measures how fast the rescuer reads changes of documents whose messages have already been delivered. No command is
/// needed, but every change and every document must be read.
pub(crate) async fn drain(bed: &Bed, report: &mut Report) -> Result<()> {
    let backlog = Backlog::make(bed).await?;
    let changes = backlog.changes;

    let mut rates = Rates::default();
    let blocks = bed.scale.blocks_of(changes);
    for block in blocks.clone() {
        for contender in Contender::in_turn(block) {
            let counting = block + 1 == blocks.end;
            let before = if counting { Some(Counters::take(bed).await?) } else { None };
            let took = match contender {
                Contender::Ours => backlog.rescue(bed).await?,
                Contender::Theirs => backlog.count_only(bed).await?,
            };
            if let Some(before) = before {
                let name = match contender {
                    Contender::Ours => "rescuer",
                    Contender::Theirs => "change stream, counting only",
                };
                let counted = before.until_now(bed).await?;
                report.count(format!("{name}, {changes} changes"), changes as f64, counted);
            }
            rates.add(contender, block, changes as f64 / took.as_secs_f64());
        }
    }
    backlog.database.drop().await?;

    let Rates { ours, theirs } = rates;
    let row = Row::new(
        "drain",
        format!("rescuer drain of {changes} changes"),
        "change stream, same pipeline, counting only",
    );
    let detail = format!("{:.0}/s to {:.0}/s", percentile(&ours, 50.0), percentile(&theirs, 50.0));
    report.add(row.goal(Goal::AtLeast(0.9)).values("×", &ratios(&ours, &theirs)).detail(detail));
    report.draw(
        Figure::new("drain", format!("Catching up on {changes} changes"), "/s")
            .ours("rescuer", &ours)
            .theirs("driver's change stream, counting only", &theirs),
    );
    Ok(())
}

/// Changes that a rescuer still has to read.
struct Backlog {
    database: Database,
    settings: Settings,
    /// The position of a rescuer that was started and stopped before all changes.
    position: Document,
    from: Timestamp,
    changes: usize,
}

impl Backlog {
    async fn make(bed: &Bed) -> Result<Self> {
        let documents = bed.scale.pick(2_000, 100_000);
        let database = bed.client.database(&format!("{}_changes", bed.name()));
        let pattern: NamespacePattern = format!("{}.*", database.name()).parse()?;
        let collection = small_documents(&database, documents).await?;
        let settings = Settings::new(vec![pattern]).with(|settings| {
            settings.delay = Duration::from_secs(1);
            bed.state().name().clone_into(&mut settings.state_database);
        });

        run(&settings, bed, 0).await?;
        let positions = bed.state().collection::<Document>("positions");
        let position = positions.find_one(doc! {}).await?.ok_or("the rescuer saved no position")?;

        let from = now(bed).await?;
        for round in 0..ROUNDS {
            let changed = doc! { "$set": { "outbox": [entry()], "round": i32::try_from(round)? } };
            collection.update_many(doc! {}, changed).await?;
        }
        collection.update_many(doc! {}, doc! { "$set": { "outbox": [] } }).await?;
        tokio::time::sleep(settings.delay).await;

        Ok(Self { database, settings, position, from, changes: documents * ROUNDS })
    }

    async fn rescue(&self, bed: &Bed) -> Result<Duration> {
        let positions = bed.state().collection::<Document>("positions");
        positions.replace_one(doc! { "_id": self.position.get("_id") }, &self.position).await?;
        run(&self.settings, bed, self.changes).await
    }

    async fn count_only(&self, bed: &Bed) -> Result<Duration> {
        let client = Client::with_uri_str(&bed.mongodb_uri).await?;
        let began = Instant::now();
        let stages = pipelines(&self.settings).remove(0);
        count_changes(&client, self.database.name(), stages, self.from, self.changes).await?;
        Ok(began.elapsed())
    }
}

/// Measures the time from the start of a rescuer until it has processed `changes` changes. With zero changes,
/// the time ends when the rescuer's change stream is open.
async fn run(settings: &Settings, bed: &Bed, changes: usize) -> Result<Duration> {
    let client = Client::with_uri_str(&bed.mongodb_uri).await?;
    let commands = Arc::new(CountedCommands::default());
    let rescuer = Rescuer::new(client, commands.clone(), settings.clone())?;
    let mut events = rescuer.subscribe();
    let stop = CancellationToken::new();
    let began = Instant::now();
    let running = tokio::spawn(rescuer.run(stop.clone()));
    let (mut opened, mut dealt_with) = (false, 0);
    while !opened || dealt_with < changes {
        match events.recv().await? {
            RescueEvent::Opened { .. } => opened = true,
            RescueEvent::PageDone { changes, .. } => dealt_with += changes,
            _ => {}
        }
    }
    let took = began.elapsed();
    stop.cancel();
    running.await??;
    match commands.0.load(Ordering::Relaxed) {
        0 => Ok(took),
        sent => Err(format!("{sent} commands were sent for documents that need none").into()),
    }
}

/// Creates a recent, unclaimed entry.
fn entry() -> Document {
    // The time is read once for both fields, because an entry that becomes available even a millisecond after
    // its creation counts as scheduled.
    let now = mongodb::bson::DateTime::now();
    doc! {
        "id": Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes()),
        "type": "order.changed",
        "payload": { "note": "n".repeat(120) },
        "created_at": now,
        "available_at": now,
    }
}

async fn small_documents(database: &Database, count: usize) -> Result<Collection<Document>> {
    let collection = database.collection::<Document>("orders");
    for numbers in (0..count).collect::<Vec<_>>().chunks(5_000) {
        collection.insert_many(numbers.iter().map(|n| doc! { "_id": id(*n), "outbox": [] })).await?;
    }
    collection.create_indexes(document_outbox::store::indexes()).await?;
    Ok(collection)
}

async fn now(bed: &Bed) -> Result<Timestamp> {
    let hello = bed.client.database("admin").run_command(doc! { "hello": 1 }).await?;
    Ok(hello.get_timestamp("operationTime")?)
}

/// Measures how late the commands for undelivered documents are. Each command is due when the rescuer's delay
/// has passed since the save.
pub(crate) async fn timeliness(bed: &Bed, report: &mut Report) -> Result<()> {
    let delay = Duration::from_secs(2);
    let count = bed.scale.pick(300, 1_400);
    let database = bed.client.database(&format!("{}_timely", bed.name()));
    let collection = small_documents(&database, 1).await?;
    let settings = [("DELAY", "2s".to_owned()), ("STREAM", "timely".to_owned())];
    let service = Service::start(bed, "outbox-rescuer", database.name(), &settings)?;
    is_at_work(bed, "timely").await?;

    let leave = leave_behind(bed, &collection, count);
    let receive = async { timeout(Duration::from_mins(2), receive_commands(bed, count)).await? };
    let (inserted, received) = futures::future::try_join(leave, receive).await?;
    service.stop().await?;
    database.drop().await?;

    // The lateness of each command for a document that was left undelivered, in ms.
    let mut late = Vec::new();
    for (command, at) in &received {
        if let Some(inserted) = inserted.get(command.document.id().as_str().unwrap_or_default()) {
            let due = inserted + i64::try_from(delay.as_micros())?;
            late.push((at - due) as f64 / 1e3);
        }
    }

    let blocks: Vec<&[f64]> = late.chunks_exact(count / bed.scale.blocks).collect();
    let p50: Vec<f64> = blocks.iter().map(|late| percentile(late, 50.0)).collect();
    let p99: Vec<f64> = blocks.iter().map(|late| percentile(late, 99.0)).collect();
    let detail = format!("p50 {:.0} ms, earliest {:.1} ms", percentile(&late, 50.0), percentile(&late, 0.0));
    let row = Row::new("timeliness", "rescuer timeliness, p99 at 100/s", "the save's time + delay");
    report.add(row.goal(Goal::AtMost(250.0)).values(" ms", &p99).detail(detail));
    report.draw(
        Figure::new("timeliness", "Commands after they were due", " ms").ours("p50", &p50).ours("p99", &p99),
    );
    Ok(())
}

/// Inserts documents at a fixed rate, each with an undelivered message. Returns the time of each insert by
/// the document's id.
async fn leave_behind(
    bed: &Bed,
    collection: &Collection<Document>,
    count: usize,
) -> Result<HashMap<String, i64>> {
    let mut inserted = HashMap::new();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / LEFT_PER_SECOND));
    for n in 1..=count {
        ticks.tick().await;
        inserted.insert(id(n), bed.micros());
        collection.insert_one(doc! { "_id": id(n), "outbox": [entry()] }).await?;
    }
    Ok(inserted)
}

/// Receives the next commands on the queue, each with its time of arrival.
async fn receive_commands(bed: &Bed, count: usize) -> Result<Vec<(ProcessDocumentMessages, i64)>> {
    let connection = bed.connect().await?;
    let channel = connection.create_channel().await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let queue = bed.commands();
    let mut commands =
        channel.basic_consume(queue.into(), "commands".into(), options, FieldTable::default()).await?;

    let mut received = Vec::new();
    while received.len() < count {
        let command = commands.next().await.ok_or("the receiver's channel ended")??;
        let at = bed.micros();
        received.push((ProcessDocumentMessages::from_json(&command.data)?, at));
    }
    Ok(received)
}

/// Waits until the rescuer has saved its first position and the commands queue exists.
async fn is_at_work(bed: &Bed, stream: &str) -> Result<()> {
    let positions = bed.state().collection::<Document>("positions");
    let begun = async {
        while positions.find_one(doc! { "_id": stream }).await?.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        loop {
            let channel = bed.connect().await?;
            let channel = channel.create_channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            if channel.queue_declare(bed.commands().into(), passive, FieldTable::default()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), begun).await.map_err(|_| "the rescuer does not start")?
}

/// Measures the memory of two rescuers that read the same changes. The changed documents have undelivered
/// messages.
pub(crate) async fn memory(bed: &Bed, report: &mut Report) -> Result<()> {
    let changes = bed.scale.pick(20_000, 100_000);
    let database = bed.client.database(&format!("{}_memory", bed.name()));
    let collection = small_documents(&database, changes).await?;
    let mut services = Vec::new();
    for (name, delay) in [("15s", "15s"), ("5min", "5m")] {
        let settings = [("DELAY", delay.to_owned()), ("STREAM", name.to_owned())];
        services.push((name, Service::start(bed, "outbox-rescuer", database.name(), &settings)?));
        is_at_work(bed, name).await?;
    }
    let before = bed.waiting(&bed.commands()).await?;
    collection.update_many(doc! {}, doc! { "$set": { "outbox": [entry()] } }).await?;
    let queued = async {
        while bed.waiting(&bed.commands()).await? - before < u64::try_from(changes)? {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, crate::result::Failure>(())
    };
    tokio::time::timeout(Duration::from_mins(3), queued)
        .await
        .map_err(|_| "the rescuer sends no commands")??;
    for (name, service) in services {
        let row = Row::new(
            format!("memory-{name}"),
            format!("rescuer memory at its peak, delay {name}, {changes} changes"),
            "–",
        );
        report.add(row.goal(Goal::AtMost(40.0)).values(" MiB", &[service.peak_memory_mib()?]));
        service.stop().await?;
    }
    let purge = lapin::options::QueuePurgeOptions::default();
    bed.channel.queue_purge(bed.commands().into(), purge).await?;
    database.drop().await?;
    Ok(())
}

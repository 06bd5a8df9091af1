//! Measures the cost of a rescuer: bytes on the wire for each change, and peak memory.
//!
//! ```sh
//! scripts/services up && eval "$(scripts/services env)"
//! cargo build --release -p outbox-rescuer
//! cargo run --release -p outbox-rescuer --example measure -- wire
//! cargo run --release -p outbox-rescuer --example measure -- memory 2s 10m
//! cargo run --release -p outbox-rescuer --example measure -- memory 5m 10m
//! ```
//! `memory DELAY TIME` runs the binary for TIME, with 1,000 changes a second. The messages of these changes
//! are cleared at once, as inline dispatch clears them. It works only on Linux, because it reads `/proc`.

use std::{
    collections::HashSet,
    error::Error,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{SendFailure, command::ProcessDocumentMessages};
use mongodb::{
    Client, Collection, Database,
    bson::{DateTime, Document, RawDocumentBuf, Uuid, doc, oid::ObjectId},
    event::{EventHandler, command::CommandEvent},
    options::ClientOptions,
};
use outbox_rescuer::{CancellationToken, Commands, RescueEvent, Rescuer, Settings};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let uri = std::env::var("OUTBOX_MONGODB_URI").map_err(|_| "eval \"$(scripts/services env)\" first")?;
    let client = Client::with_uri_str(&uri).await?;
    let database = client.database(&format!("measure_{}", std::process::id()));
    let state = client.database(&format!("{}_state", database.name()));
    let measured = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["wire"] => wire(&uri, &database, &state).await,
        ["memory", delay, time] => memory(&database, &state, delay, humantime::parse_duration(time)?).await,
        _ => Err("usage: measure wire | measure memory DELAY TIME".into()),
    };
    database.drop().await?;
    state.drop().await?;
    measured
}

/// A document of about 500 bytes with one message.
fn order(number: u32) -> Document {
    let now = DateTime::now();
    let entry = doc! {
        "id": Uuid::new(), "type": "order.placed", "payload": { "order": i64::from(number) },
        "created_at": now, "available_at": now,
    };
    doc! { "_id": ObjectId::new(), "number": i64::from(number), "customer": "c".repeat(300), "outbox": [entry] }
}

/// The contents of the change stream's replies.
#[derive(Default)]
struct Replies {
    of_streams: HashSet<i32>,
    bytes: u32,
    changes: u32,
}

impl Replies {
    fn see(&mut self, event: CommandEvent) {
        match event {
            CommandEvent::Started(event) => {
                let on = event.command.get_str("collection").unwrap_or_default();
                if event.command_name == "getMore" && on.starts_with("$cmd") {
                    self.of_streams.insert(event.request_id);
                }
            }
            CommandEvent::Succeeded(event) if self.of_streams.remove(&event.request_id) => {
                let batch =
                    event.reply.get_document("cursor").and_then(|cursor| cursor.get_array("nextBatch"));
                let changes = batch.map_or(0, |batch| u32::try_from(batch.len()).unwrap_or(u32::MAX));
                if changes > 0 {
                    self.changes += changes;
                    let bytes = RawDocumentBuf::try_from(&event.reply).map_or(0, |raw| raw.as_bytes().len());
                    self.bytes += u32::try_from(bytes).unwrap_or(u32::MAX);
                }
            }
            _ => {}
        }
    }
}

/// Confirms every command.
struct Confirming;

#[async_trait]
impl Commands for Confirming {
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        commands.iter().map(|_| Ok(())).collect()
    }

    async fn ready(&self) {}
}

const CHANGES: u32 = 20_000;

async fn wire(uri: &str, database: &Database, state: &Database) -> Outcome<()> {
    let orders = database.collection::<Document>("orders");
    let replies: Arc<Mutex<Replies>> = Arc::default();
    let mut options = ClientOptions::parse(uri).await?;
    let into = replies.clone();
    options.command_event_handler = Some(EventHandler::callback(move |event| {
        if let Ok(mut replies) = into.lock() {
            replies.see(event);
        }
    }));
    let settings = Settings::new(vec![format!("{}.*", database.name()).parse()?]).with(|settings| {
        settings.delay = Duration::from_secs(1);
        state.name().clone_into(&mut settings.state_database);
    });
    let rescuer = Rescuer::new(Client::with_options(options)?, Arc::new(Confirming), settings)?;
    let (mut events, stop) = (rescuer.subscribe(), CancellationToken::new());
    let running = tokio::spawn(rescuer.run(stop.clone()));
    while !matches!(events.recv().await, Ok(RescueEvent::Opened { .. })) {}
    for first in (0..CHANGES).step_by(500) {
        orders.insert_many((first..first + 500).map(order)).await?;
    }
    let seen = |at_least: u32| {
        let replies = replies.clone();
        async move {
            loop {
                let now = replies.lock().map(|replies| (replies.changes, replies.bytes)).unwrap_or_default();
                if now.0 >= at_least {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let (changes, bytes) = seen(CHANGES).await;
    println!(
        "{changes} changes that fill an outbox: {:.0} bytes each",
        f64::from(bytes) / f64::from(changes)
    );
    // The following changes touch no outbox, except for the last change, which shows that all earlier ones
    // were read.
    orders.update_many(doc! {}, doc! { "$set": { "customer": "d".repeat(300) } }).await?;
    orders.insert_one(order(CHANGES)).await?;
    let (more, _) = seen(changes + 1).await;
    println!("{CHANGES} changes that touch none: {} sent", more - changes - 1);
    stop.cancel();
    running.await??;
    Ok(())
}

/// A child process that ends together with this program.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn memory(database: &Database, state: &Database, delay: &str, time: Duration) -> Outcome<()> {
    let orders = database.collection::<Document>("orders");
    let [due, _] = document_outbox::store::indexes();
    orders.create_index(due).await?;
    let binary = std::env::current_exe()?.with_file_name("../outbox-rescuer");
    let rescuer = Command::new(binary)
        .env("OUTBOX_WATCH", format!("{}.*", database.name()))
        .env("OUTBOX_STATE_DATABASE", state.name())
        .env("OUTBOX_COMMANDS_EXCHANGE", "outbox.measure")
        .env("OUTBOX_COMMANDS_QUEUE", "outbox.measure")
        .env("OUTBOX_DELAY", delay)
        .env("OUTBOX_LOG_FILTER", "warn")
        .env("OUTBOX_HTTP_LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null())
        .spawn()?;
    let mut rescuer = Process(rescuer);
    let begun = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let mut number = 0;
    while begun.elapsed() < time {
        tick.tick().await;
        change(&orders, number).await?;
        number += 20;
    }
    let rate = f64::from(number) / begun.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{}/status", rescuer.0.id()))?;
    if let Some(ended) = rescuer.0.try_wait()? {
        return Err(format!("the rescuer ended: {ended}").into());
    }
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = peak.unwrap_or_default().trim().trim_end_matches(" kB").parse()?;
    println!("delay {delay}, {rate:.0} changes/s for {time:?}: at most {:.1} MiB", kib / 1024.0);
    Ok(())
}

/// Makes twenty saves whose messages are delivered at once.
async fn change(orders: &Collection<Document>, number: u32) -> Outcome<()> {
    let saved: Vec<Document> = (number..number + 20).map(order).collect();
    let ids: Vec<_> = saved.iter().filter_map(|order| order.get("_id").cloned()).collect();
    orders.insert_many(saved).await?;
    orders.update_many(doc! { "_id": { "$in": ids } }, doc! { "$set": { "outbox": [] } }).await?;
    Ok(())
}

//! The parts that the tests share: a separate database, a rescuer in this process, a sender that records
//! commands, and functions that wait for events.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use document_outbox::{SendFailure, command::ProcessDocumentMessages};
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use mongodb::{
    Client, Collection, Database, IndexModel,
    bson::{Bson, DateTime, Document, Timestamp, Uuid, doc},
    options::{ClientOptions, IndexOptions},
};
use outbox_rescuer::{CancellationToken, Commands, RescueEvent, Rescuer, RescuerError, Settings, Status};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::broadcast,
    task::JoinHandle,
    time::timeout,
};

use crate::on_panic::OnPanic;

/// A time longer than any step of a test takes. A test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const DELAY: Duration = Duration::from_secs(1);

/// A name that no other test uses or has used.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}_{}", &Uuid::new().to_string().replace('-', "")[..12])
}

pub(crate) fn mongodb_uri() -> String {
    std::env::var("OUTBOX_MONGODB_URI").expect("eval \"$(scripts/services env)\" first")
}

pub(crate) fn rabbitmq_uri() -> String {
    std::env::var("OUTBOX_RABBITMQ_URI").expect("eval \"$(scripts/services env)\" first")
}

/// Exchanges and queues are durable, so each test removes the exchange and the queue that it has
/// declared.
pub(crate) async fn remove(uri: &str, exchange: &str, queue: &str) {
    let connection = lapin::Connection::connect(uri, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

/// A separate database, and the state database of its rescuer; both are dropped by [`World::end`].
pub(crate) struct World {
    pub(crate) client: Client,
    uri: String,
    /// This name distinguishes the rescuer's client from the clients of this and other tests.
    pub(crate) app_name: String,
    pub(crate) db: Database,
    pub(crate) state: Database,
    _on_panic: OnPanic,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::on(mongodb_uri()).await
    }

    pub(crate) async fn on(uri: String) -> Self {
        // The log of a test is shown if the test fails.
        let _ =
            tracing_subscriber::fmt().with_env_filter("outbox_rescuer=debug").with_test_writer().try_init();
        let client = Client::with_uri_str(&uri).await.unwrap();
        let name = unique("rescuer");
        let state = client.database(&format!("{name}_state"));
        let on_panic = OnPanic::drop_databases(uri.clone(), name.clone());
        Self { db: client.database(&name), state, app_name: name, client, uri, _on_panic: on_panic }
    }

    pub(crate) fn orders(&self) -> Collection<Document> {
        self.db.collection("orders")
    }

    pub(crate) async fn server_time(&self) -> Timestamp {
        let reply = self.client.database("admin").run_command(doc! { "ping": 1 }).await.unwrap();
        reply.get_timestamp("operationTime").unwrap()
    }

    /// Waits until the server has this many change streams open on this database, even if no request is
    /// reading them.
    pub(crate) async fn streams_open(&self, expected: usize) {
        // Counts streams with and without a pending request for the next batch.
        let of = [".$cmd.aggregate", ".$cmd"].map(|name| format!("{}{name}", self.db.name()));
        let begun = Instant::now();
        loop {
            let all = doc! { "$currentOp": { "allUsers": true, "idleCursors": true } };
            let streams = doc! { "$match": { "ns": { "$in": &of[..] }, "cursor": { "$exists": true } } };
            let mut found = self.client.database("admin").aggregate([all, streams]).await.unwrap();
            let mut count = 0;
            while found.advance().await.unwrap() {
                count += 1;
            }
            if count == expected {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{count} change streams are open, not {expected}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A collection with the index for the sweep.
    pub(crate) async fn indexed_orders(&self) -> Collection<Document> {
        let orders = self.orders();
        index(&orders).await;
        orders
    }

    pub(crate) fn positions(&self) -> Collection<Document> {
        self.state.collection("positions")
    }

    /// The stored lease of the stream.
    pub(crate) fn leases(&self) -> Collection<Document> {
        self.state.collection("leases")
    }

    pub(crate) async fn position(&self) -> Document {
        self.positions().find_one(doc! { "_id": "default" }).await.unwrap().expect("a position")
    }

    /// Settings that watch the whole database, and sweep so rarely that only the stream is at work.
    pub(crate) fn settings(&self) -> Settings {
        let pattern = format!("{}.*", self.db.name()).parse().unwrap();
        Settings::new(vec![pattern]).with(|settings| {
            settings.delay = DELAY;
            // The lease is so long that a renewal is in time even on a busy machine. A term that ended early
            // would forget which documents it queued.
            settings.ownership_lease = Duration::from_secs(10);
            settings.sweep_interval = Duration::from_mins(10);
            settings.sweep_queries_per_second = 1000;
            self.state.name().clone_into(&mut settings.state_database);
            settings.busy_save_interval = Duration::from_millis(20);
            settings.idle_save_interval = Duration::from_millis(100);
            settings.refused_for = Duration::from_millis(500);
        })
    }

    pub(crate) async fn start(&self, commands: &Arc<impl Commands + 'static>, settings: Settings) -> Running {
        self.something_else_is_written().await;
        let mut options = ClientOptions::parse(&self.uri).await.unwrap();
        options.app_name = Some(self.app_name.clone());
        let client = Client::with_options(options).unwrap();
        let rescuer = Rescuer::new(client, commands.clone(), settings).unwrap();
        let (events, status) = (rescuer.subscribe(), rescuer.status());
        let stop = CancellationToken::new();
        let task = tokio::spawn(rescuer.run(stop.clone()));
        Running { events, status, stop, task, begun: Instant::now() }
    }

    /// Starts a rescuer, and waits until the stream is open and the first sweep is over.
    pub(crate) async fn started(
        &self,
        commands: &Arc<impl Commands + 'static>,
        settings: Settings,
    ) -> Running {
        let mut running = self.start(commands, settings).await;
        let (mut opened, mut swept) = (false, false);
        running
            .wait("the stream to open and the first sweep to end", |event| {
                opened |= matches!(event, RescueEvent::Opened { .. });
                swept |= matches!(event, RescueEvent::SweepDone { .. });
                (opened && swept).then_some(())
            })
            .await;
        running
    }

    /// Writes something else, which advances the server's operation time. A stream also shows the change at
    /// its start time, so without this write a stream that starts now would show an earlier change.
    async fn something_else_is_written(&self) {
        self.state.collection("noise").insert_one(doc! {}).await.unwrap();
    }

    /// Sets a fail point for the test's rescuer, and returns the number of commands that have met it so
    /// far.
    pub(crate) async fn fail(&self, fail: Document, mode: impl Into<Bson>) -> i64 {
        crate::isolation::assert_in("fail_point");
        let mut data = doc! { "appName": &self.app_name };
        data.extend(fail);
        let command = doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": data };
        let reply = self.client.database("admin").run_command(command).await.unwrap();
        let count = reply.get("count").unwrap();
        count.as_i64().or(count.as_i32().map(i64::from)).unwrap()
    }

    /// Waits until the fail point was met more than `before` times.
    pub(crate) async fn has_met(&self, before: i64) {
        let most = i64::try_from(PATIENCE.as_millis()).unwrap();
        let wait = doc! { "waitForFailPoint": "failCommand", "timesEntered": before + 1, "maxTimeMS": most };
        self.client.database("admin").run_command(wait).await.unwrap();
    }

    /// Makes the server end the queries on this test's orders.
    pub(crate) async fn end_queries(&self) {
        let admin = self.client.database("admin");
        let ours = doc! { "$match": { "command.find": "orders", "command.$db": self.db.name() } };
        let mut found = admin.aggregate([doc! { "$currentOp": { "allUsers": true } }, ours]).await.unwrap();
        while found.advance().await.unwrap() {
            let op = found.deserialize_current().unwrap().get("opid").unwrap().clone();
            admin.run_command(doc! { "killOp": 1, "op": op }).await.unwrap();
        }
    }

    pub(crate) async fn end(self) {
        self.db.drop().await.unwrap();
        self.state.drop().await.unwrap();
    }
}

pub(crate) async fn index(collection: &Collection<Document>) {
    let options =
        IndexOptions::builder().partial_filter_expression(doc! { "outbox.id": { "$exists": true } }).build();
    let model = IndexModel::builder().keys(doc! { "outbox.available_at": 1 }).options(options).build();
    collection.create_index(model).await.unwrap();
}

/// A rescuer that runs in this process.
pub(crate) struct Running {
    pub(crate) events: broadcast::Receiver<RescueEvent>,
    pub(crate) status: Status,
    pub(crate) stop: CancellationToken,
    /// The time of the start. A test that waits in a loop counts its deadline from this time.
    pub(crate) begun: Instant,
    pub(crate) task: JoinHandle<Result<(), RescuerError>>,
}

impl Running {
    /// Waits until `pick` accepts one of the events.
    pub(crate) async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&RescueEvent) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let search = async {
            loop {
                match self.events.recv().await {
                    Ok(event) => {
                        if let Some(found) = pick(&event) {
                            return found;
                        }
                        seen.push(event);
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(error) => panic!("the rescuer ended while the test waited for {what}: {error}"),
                }
            }
        };
        let left = (PATIENCE * 2).saturating_sub(self.begun.elapsed()).min(PATIENCE);
        let searched = timeout(left, search).await;
        searched.unwrap_or_else(|_| panic!("waited in vain for {what}; seen: {seen:#?}"))
    }

    pub(crate) async fn page(&mut self) -> (usize, usize, usize) {
        self.wait("a page", |event| match event {
            RescueEvent::PageDone { changes, documents, queued } => Some((*changes, *documents, *queued)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn saved(&mut self) {
        self.wait("a saved position", |event| {
            matches!(event, RescueEvent::PositionSaved { .. }).then_some(())
        })
        .await;
    }

    pub(crate) async fn owned(&mut self) -> i64 {
        self.wait("the stream to be owned", |event| match event {
            RescueEvent::Owned { epoch, .. } => Some(*epoch),
            _ => None,
        })
        .await
    }

    pub(crate) async fn standing_by(&mut self) -> String {
        self.wait("another owner to be seen", |event| match event {
            RescueEvent::StandingBy { owner, .. } => Some(owner.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn stepped_back(&mut self) -> String {
        self.wait("the stream to be given up", |event| match event {
            RescueEvent::SteppedBack { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for a round of the sweep that queues something.
    pub(crate) async fn swept_something(&mut self) {
        let queued = |event: &RescueEvent| match event {
            RescueEvent::SweepDone { queued, .. } => (*queued > 0).then_some(()),
            _ => None,
        };
        self.wait("a sweep that queues something", queued).await;
    }

    /// Waits until the next round of the sweep ends, and returns whether it was full, and the number of
    /// queued documents.
    pub(crate) async fn swept(&mut self) -> (bool, usize) {
        self.wait("a sweep", |event| match event {
            RescueEvent::SweepDone { full, queued, .. } => Some((*full, *queued)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn stop(self) -> Result<(), RescuerError> {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("it stops").expect("no panic")
    }

    /// Ends the rescuer immediately, as a crash would.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.stop.cancel();
    }
}

/// Starts a proxy to the server that changes `localTime` in replies, so that the server's clock appears to be
/// set back. The proxy ends with the test.
pub(crate) async fn set_back(by: Duration) -> String {
    let uri = mongodb_uri();
    let server = uri.trim_start_matches("mongodb://").split('/').next().unwrap().to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move { pass_set_back(from_server, &mut to_client, by).await });
        }
    });
    format!("mongodb://{address}/?directConnection=true")
}

/// Forwards whole messages.
async fn pass_set_back(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    by: Duration,
) -> std::io::Result<()> {
    const FIELD: &[u8] = b"\x09localTime\0";
    loop {
        let mut message = from.read_u32_le().await?.to_le_bytes().to_vec();
        let length = u32::from_le_bytes(message[..4].try_into().unwrap()) as usize;
        message.resize(length, 0);
        from.read_exact(&mut message[4..]).await?;
        if let Some(at) = message.windows(FIELD.len()).position(|bytes| bytes == FIELD) {
            let value = at + FIELD.len()..at + FIELD.len() + 8;
            let millis = i64::from_le_bytes(message[value.clone()].try_into().unwrap());
            let behind = millis - i64::try_from(by.as_millis()).unwrap();
            message[value].copy_from_slice(&behind.to_le_bytes());
        }
        to.write_all(&message).await?;
    }
}

/// Waits until a condition holds for which there is no event.
pub(crate) async fn until_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Takes commands and remembers them; refuses them on request.
#[derive(Default)]
pub(crate) struct Recorder {
    taken: Mutex<Vec<(ProcessDocumentMessages, Instant)>>,
    pub(crate) away: AtomicBool,
    pub(crate) refusals: AtomicUsize,
}

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn ids(&self) -> Vec<Bson> {
        self.taken.lock().unwrap().iter().map(|(command, _)| command.document.id().clone()).collect()
    }

    /// The keys of the documents, as bytes.
    pub(crate) fn distinct_keys(&self) -> HashSet<Vec<u8>> {
        let taken = self.taken();
        taken.iter().map(|(command, _)| command.document.key().as_bytes().to_vec()).collect()
    }

    /// Returns each document once, in the order of its first command. The sweep may send another command for
    /// the same document.
    pub(crate) fn firsts(&self) -> Vec<Bson> {
        let mut firsts: Vec<Bson> = Vec::new();
        for id in self.ids() {
            if !firsts.contains(&id) {
                firsts.push(id);
            }
        }
        firsts
    }

    pub(crate) fn distinct(&self) -> usize {
        self.ids().iter().map(Bson::to_string).collect::<HashSet<_>>().len()
    }

    pub(crate) fn taken(&self) -> Vec<(ProcessDocumentMessages, Instant)> {
        self.taken.lock().unwrap().clone()
    }
}

#[async_trait]
impl Commands for Recorder {
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        let away = self.away.load(Ordering::SeqCst);
        let answer = |command: ProcessDocumentMessages| {
            if away {
                self.refusals.fetch_add(1, Ordering::SeqCst);
                return Err(SendFailure::Unavailable("away".into()));
            }
            self.taken.lock().unwrap().push((command, Instant::now()));
            Ok(())
        };
        commands.into_iter().map(answer).collect()
    }

    async fn ready(&self) {}

    fn is_ready(&self) -> bool {
        !self.away.load(Ordering::SeqCst)
    }
}

/// An entry as another program writes it: with only the required fields.
pub(crate) fn minimal() -> Document {
    doc! { "id": Uuid::new(), "type": "order.placed", "payload": { "n": 1 } }
}

/// An entry with dates: it was created and became due this many milliseconds ago.
pub(crate) fn dated(made: i64, due: i64) -> Document {
    // The time is read once: an entry that became due a moment after its creation would count as
    // scheduled.
    let now = DateTime::now().timestamp_millis();
    let at = |ago: i64| DateTime::from_millis(now - ago);
    let mut entry = minimal();
    entry.extend(doc! { "created_at": at(made), "available_at": at(due), "attempts": 0, "claims": 0 });
    entry
}

pub(crate) fn push(entry: Document) -> Document {
    doc! { "$push": { "outbox": entry } }
}

//! Tests saves in a batch. Each save gets the same answer as if it had been sent alone.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::standalone::Standalone;
use crate::support::{LONG, TestDatabase, uri};
use document_outbox::{
    Aggregate, Error, InlineDispatcher, Message, Outbox, Store,
    store::{Inserted, Saved},
};
use futures::future::join_all;
use mongodb::{
    Client, ServerType,
    bson::{Bson, Decimal128, Document, Timestamp, doc, oid::ObjectId},
    event::{EventHandler, command::CommandEvent, sdam::SdamEvent},
    options::ClientOptions,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// An aggregate whose history shows which saves were applied.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Account {
    #[serde(rename = "_id")]
    id: Bson,
    history: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unique: Option<i32>,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
}

impl Message for Named {
    const TYPE: &'static str = "named";
}

impl Account {
    fn new(id: impl Into<Bson>) -> Self {
        Self { id: id.into(), history: Vec::new(), unique: None, outbox: Outbox::default() }
    }
}

impl Aggregate for Account {
    type Id = Bson;
    fn id(&self) -> &Bson {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

/// A bank whose client counts the `update` commands, and separately the `update` commands with more than one
/// statement.
struct Bank {
    test: TestDatabase,
    name: String,
    accounts: Store<Account>,
    alone: Arc<AtomicUsize>,
    together: Arc<AtomicUsize>,
}

impl Bank {
    async fn open() -> Self {
        Self::at("OUTBOX_MONGODB_URI", true).await
    }

    async fn at(variable: &str, group_commit: bool) -> Self {
        let options = ClientOptions::parse(uri(variable)).await.unwrap();
        Self::with(TestDatabase::on(variable).await, options, group_commit, |_| {})
    }

    /// Opens a bank with these client options. `heard` gets every command event.
    fn with(
        test: TestDatabase,
        mut options: ClientOptions,
        group_commit: bool,
        heard: impl Fn(&CommandEvent) + Send + Sync + 'static,
    ) -> Self {
        let name = format!("bank-{}", uuid::Uuid::now_v7().simple());
        let (alone, together) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (alone.clone(), together.clone());
        options.app_name = Some(name.clone());
        options.command_event_handler = Some(EventHandler::callback(move |event: CommandEvent| {
            heard(&event);
            if let CommandEvent::Started(started) = event
                && let Ok(statements) = started.command.get_array("updates")
            {
                let count = if statements.len() > 1 { &counts.1 } else { &counts.0 };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let client = Client::with_options(options).unwrap();
        let inline = InlineDispatcher::builder(&client)
            .group_commit(group_commit)
            .deliver_to(crate::support::Recorder::default());
        let collection = client.database(test.database.name()).collection::<Document>("orders");
        Self { accounts: Store::new(collection, &inline), test, name, alone, together }
    }

    /// Returns the same bank with another deliverer.
    fn delivering_to(mut self, deliver: crate::support::Recorder) -> Self {
        let client = self.accounts.collection().client();
        let inline = InlineDispatcher::builder(client).deliver_to(deliver);
        self.accounts = Store::new(self.accounts.collection().clone(), &inline);
        self
    }

    async fn add(&self, account: Account) {
        assert!(matches!(self.accounts.insert(account).await.unwrap(), Inserted::Applied(..)));
    }

    async fn add_many(&self, count: i32) {
        join_all((0..count).map(|id| self.add(Account::new(id)))).await;
    }

    /// Reads are not tested here, so this read is retried until it succeeds.
    async fn load(&self, id: &Bson) -> document_outbox::Loaded<Account> {
        loop {
            if let Ok(account) = self.accounts.load(id).await {
                return account.expect("the account is there");
            }
        }
    }

    /// Appends a name once to an account's history. Returns the name and the outcome.
    async fn append(&self, id: impl Into<Bson>) -> (String, Result<Saved, Error>) {
        let name = uuid::Uuid::new_v4().to_string();
        let mut account = self.load(&id.into()).await;
        account.history.push(name.clone());
        let saved = self.accounts.save(&mut account).await;
        (name, saved)
    }

    /// Returns the number of times that each name occurs in a history.
    async fn histories(&self) -> HashMap<String, usize> {
        let mut found = HashMap::new();
        let mut documents = self.test.orders().find(doc! {}).await.unwrap();
        while documents.advance().await.unwrap() {
            for name in documents.deserialize_current().unwrap().get_array("history").unwrap() {
                *found.entry(name.as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        found
    }

    /// Checks the invariant: a save that is reported as applied occurs exactly once in the history, and a save that is
    /// reported as not applied doesn't occur.
    async fn check(&self, saves: &[(String, Result<Saved, Error>)]) {
        let found = self.histories().await;
        for (name, saved) in saves {
            let there = found.get(name).copied().unwrap_or(0);
            match saved {
                Ok(Saved::Applied(_)) => assert_eq!(there, 1, "{name} was applied"),
                Ok(Saved::Unknown(_)) => assert!(there <= 1, "{name} is unknown"),
                other => assert_eq!(there, 0, "{name}: {other:?}"),
            }
        }
    }

    async fn fail(&self, mode: impl Into<Bson>, data: Document) {
        crate::isolation::assert_in("fail_point");
        let mut all = doc! { "failCommands": ["update"], "appName": &self.name };
        all.extend(data);
        let command = doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": all };
        self.test.client.database("admin").run_command(command).await.unwrap();
    }

    fn together(&self) -> usize {
        self.together.load(Ordering::Relaxed)
    }

    fn alone(&self) -> usize {
        self.alone.load(Ordering::Relaxed)
    }

    async fn load_all(&self, count: i32) -> Vec<document_outbox::Loaded<Account>> {
        join_all((0..count).map(|id| self.load_one(id))).await
    }

    async fn load_one(&self, id: i32) -> document_outbox::Loaded<Account> {
        self.accounts.load(&Bson::from(id)).await.unwrap().expect("the account is there")
    }
}

/// Changes each account and saves all of them concurrently.
async fn save_all(
    bank: &Bank,
    accounts: &mut [document_outbox::Loaded<Account>],
) -> Vec<Result<Saved, Error>> {
    let saves = accounts.iter_mut().map(|account| {
        account.history.push("saved".into());
        bank.accounts.save(account)
    });
    within("the saves to end", join_all(saves)).await
}

fn applied(saves: &[(String, Result<Saved, Error>)]) -> usize {
    saves.iter().filter(|(_, saved)| matches!(saved, Ok(Saved::Applied(_)))).count()
}

/// Runs 256 savers on 50 documents, so that most of their saves conflict.
async fn contend(bank: &Bank, rounds: i32) -> Vec<(String, Result<Saved, Error>)> {
    let savers = (0..256).map(|saver| async move {
        let mut saves = Vec::new();
        for round in 0..rounds {
            saves.push(bank.append((saver * 7 + round * 13) % 50).await);
        }
        saves
    });
    within("the savers to end", join_all(savers)).await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_reported_saves_are_applied_once() {
    for group_commit in [true, false] {
        let bank = Bank::at("OUTBOX_MONGODB_URI", group_commit).await;
        bank.add_many(50).await;
        let saves = contend(&bank, 8).await;
        for (name, saved) in &saves {
            assert!(matches!(saved, Ok(Saved::Applied(_) | Saved::Conflict)), "{name}: {saved:?}");
        }
        assert!(applied(&saves) >= 50 && applied(&saves) < saves.len(), "{} applied", applied(&saves));
        bank.check(&saves).await;
        assert_eq!(bank.together() > 0, group_commit);
        bank.test.drop().await;
    }
}

#[tokio::test]
async fn a_single_save_is_sent_alone() {
    let bank = Bank::open().await;
    bank.add_many(1).await;
    for _ in 0..5 {
        assert!(matches!(bank.append(0).await.1, Ok(Saved::Applied(_))));
    }
    assert_eq!((bank.alone(), bank.together()), (5, 0));
    bank.test.drop().await;
}

/// One burst of saves has every outcome: applied, conflict, gone, refused by a unique index, and refused as
/// too large.
#[tokio::test]
async fn every_save_of_a_batch_gets_its_answer() {
    let bank = Bank::open().await;
    bank.add_many(40).await;
    let index = mongodb::IndexModel::builder()
        .keys(doc! { "unique": 1 })
        .options(mongodb::options::IndexOptions::builder().unique(true).sparse(true).build())
        .build();
    bank.test.orders().create_index(index).await.unwrap();
    bank.test.orders().update_one(doc! { "_id": 0 }, doc! { "$set": { "unique": 7 } }).await.unwrap();

    let mut loaded = Vec::new();
    for id in 0..40 {
        loaded.push(bank.accounts.load(&Bson::from(id)).await.unwrap().unwrap());
    }
    for id in 10..20 {
        let etag = doc! { "$set": { "etag": mongodb::bson::Uuid::new() } };
        bank.test.orders().update_one(doc! { "_id": id }, etag).await.unwrap();
    }
    bank.test.orders().delete_many(doc! { "_id": { "$gte": 20, "$lt": 30 } }).await.unwrap();
    let saves = loaded.iter_mut().zip(0..).map(|(account, id)| {
        account.history.push(format!("save-{id}"));
        account.unique = (id == 0 || id >= 30).then_some(7);
        bank.accounts.save(account)
    });
    for (saved, id) in join_all(saves).await.into_iter().zip(0..) {
        match id {
            0..10 => assert!(matches!(saved, Ok(Saved::Applied(_))), "{id}: {saved:?}"),
            10..20 => assert!(matches!(saved, Ok(Saved::Conflict)), "{id}: {saved:?}"),
            20..30 => assert!(matches!(saved, Ok(Saved::Gone)), "{id}: {saved:?}"),
            _ => {
                let error = saved.unwrap_err();
                let source = std::error::Error::source(&error).unwrap().to_string();
                assert!(source.contains("11000") || source.contains("duplicate"), "{id}: {source}");
            }
        }
    }
    assert!(bank.together() > 0);
    bank.test.drop().await;
}

#[tokio::test]
async fn a_miss_inserts_nothing_for_any_id_type() {
    let bank = Bank::open().await;
    let ids = [
        Bson::from("text"),
        Bson::from(""),
        Bson::from("$odd.text"),
        Bson::from(1),
        Bson::from(1_i64 << 40),
        Bson::from(1.5),
        Bson::from(true),
        Bson::Null,
        Bson::from(ObjectId::new()),
        Bson::from(mongodb::bson::Uuid::new()),
        Bson::from(mongodb::bson::DateTime::from_millis(1)),
        Bson::from(doc! { "a": 1, "b": { "c": "d" } }),
        Bson::from(doc! {}),
        Bson::Timestamp(Timestamp { time: 1, increment: 2 }),
        Bson::Decimal128("2.5".parse::<Decimal128>().unwrap()),
        Bson::JavaScriptCode("f()".into()),
        Bson::MinKey,
        Bson::MaxKey,
    ];
    for id in &ids {
        bank.add(Account::new(id.clone())).await;
    }
    let mut first = Vec::new();
    let mut second = Vec::new();
    for id in &ids {
        first.push(bank.accounts.load(id).await.unwrap().unwrap());
        second.push(bank.accounts.load(id).await.unwrap().unwrap());
    }
    for (account, name) in first.iter_mut().zip(0..).chain(second.iter_mut().zip(100..)) {
        account.history.push(name.to_string());
    }
    let all = first.iter_mut().chain(second.iter_mut()).map(|account| bank.accounts.save(account));
    let saves = join_all(all).await;
    for (place, id) in ids.iter().enumerate() {
        let both = [&saves[place], &saves[place + ids.len()]];
        let done = both.iter().filter(|saved| matches!(saved, Ok(Saved::Applied(_)))).count();
        let missed = both.iter().filter(|saved| matches!(saved, Ok(Saved::Conflict))).count();
        assert_eq!((done, missed), (1, 1), "{id:?}: {both:?}");
    }
    assert_eq!(bank.test.orders().count_documents(doc! {}).await.unwrap(), ids.len() as u64);
    assert!(bank.together() > 0);
    bank.test.drop().await;
}

/// A transaction locks one document of a batch, and the other saves don't wait for the transaction.
#[tokio::test]
async fn a_delayed_save_does_not_delay_others() {
    let bank = Bank::open().await;
    bank.add_many(21).await;
    let mut session = bank.test.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let held = bank.test.orders();
    held.update_one(doc! { "_id": 20 }, doc! { "$set": { "seen": true } })
        .session(&mut session)
        .await
        .unwrap();

    let waiting = bank.append(20);
    let others = join_all((0..20).map(|id| bank.append(id)));
    let mut waiting = Box::pin(waiting);
    let others = tokio::select! {
        others = others => others,
        (_, saved) = &mut waiting => panic!("the held document was saved: {saved:?}"),
    };
    assert_eq!(applied(&others), 20);
    session.abort_transaction().await.unwrap();
    let (name, saved) = within("the held save to end", &mut waiting).await;
    assert!(matches!(saved, Ok(Saved::Applied(_))), "{saved:?}");
    drop(waiting);
    bank.check(&[(name, saved)]).await;
    bank.check(&others).await;
    assert!(bank.together() > 0);
    bank.test.drop().await;
}

/// Ten saves wait for a transaction. The driver has only ten connections, and the transaction needs one of
/// these connections to commit.
#[tokio::test]
async fn delayed_saves_leave_room_for_the_commit() {
    for group_commit in [true, false] {
        let bank = Bank::at("OUTBOX_MONGODB_URI", group_commit).await;
        bank.add_many(10).await;
        let mut accounts = bank.load_all(10).await;
        // Large updates are sent alone.
        accounts.iter_mut().for_each(|account| account.history.push("x".repeat(80 << 10)));
        let client = bank.accounts.collection().client().clone();
        let mut session = client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        let seen = doc! { "$set": { "seen": true } };
        bank.accounts.collection().update_many(doc! {}, seen).session(&mut session).await.unwrap();

        let saves = save_all(&bank, &mut accounts);
        let commit = async {
            within("ten saves to be sent", async {
                while bank.alone() < 10 {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            })
            .await;
            session.commit_transaction().await.unwrap();
        };
        let (saves, ()) = within("the commit", async { tokio::join!(saves, commit) }).await;
        assert!(saves.iter().all(|saved| matches!(saved, Ok(Saved::Applied(_)))), "{saves:?}");
        bank.test.drop().await;
    }
}

#[tokio::test]
async fn saves_and_claims_never_recreate_a_dropped_collection() {
    let bank = Bank::open().await;
    bank.add_many(20).await;
    let mut accounts = bank.load_all(20).await;
    bank.test.orders().drop().await.unwrap();

    let saves = save_all(&bank, &mut accounts).await;
    assert!(saves.iter().all(|saved| matches!(saved, Ok(Saved::Gone))), "{saves:?}");
    assert!(bank.together() > 0);
    assert_eq!(bank.test.database.list_collection_names().await.unwrap(), Vec::<String>::new());
    bank.test.drop().await;
}

#[tokio::test]
async fn a_save_that_cannot_be_encoded_fails_alone() {
    for group_commit in [true, false] {
        let bank = Bank::at("OUTBOX_MONGODB_URI", group_commit).await;
        bank.add_many(20).await;
        let mut accounts = bank.load_all(20).await;
        accounts[7].outbox.send(Named { name: "a".into() }).header("a\0b", "x");

        let mut saves = save_all(&bank, &mut accounts).await;
        let refused = saves.remove(7);
        assert!(matches!(refused, Err(ref error) if !error.is_transient()), "{refused:?}");
        assert!(!matches!(refused, Err(Error::Unknown { .. })), "{refused:?}");
        assert!(saves.iter().all(|saved| matches!(saved, Ok(Saved::Applied(_)))), "{saves:?}");

        let mut unborn = Account::new(100);
        unborn.outbox.send(Named { name: "b".into() }).header("a\0b", "x");
        let inserted = bank.accounts.insert(unborn).await;
        assert!(matches!(inserted, Err(ref error) if !error.is_transient()), "{inserted:?}");
        bank.test.drop().await;
    }
}

/// The client can be shut down while stores still exist, as at the end of a program.
#[tokio::test]
async fn the_client_shuts_down_after_batches() {
    let bank = Bank::open().await;
    bank.add_many(20).await;
    let mut accounts = bank.load_all(20).await;
    save_all(&bank, &mut accounts).await;
    assert!(bank.together() > 0);

    let client = bank.accounts.collection().client().clone();
    within("the client to shut down", client.shutdown().into_future()).await;
    let after = save_all(&bank, &mut accounts).await;
    assert!(after.iter().all(|saved| matches!(saved, Err(Error::Unavailable(_)))), "{after:?}");
    bank.test.drop().await;
}

/// The driver takes sessions from a pool. If the library's sessions were in that pool, later writes would be
/// answered without being executed.
#[tokio::test]
async fn sessions_of_batches_are_never_the_drivers() {
    let bank = Bank::open().await;
    bank.add_many(50).await;
    let client = bank.accounts.collection().clone();
    contend(&bank, 1).await;
    assert!(bank.together() > 0);
    let Bank { test, accounts, .. } = bank;
    drop(accounts);
    let writes = (0..200).map(|index| {
        let client = client.clone();
        async move { client.update_one(doc! { "_id": index % 50 }, doc! { "$inc": { "plain": 1 } }).await }
    });
    for written in join_all(writes).await {
        assert_eq!(written.unwrap().modified_count, 1);
    }
    let sum = doc! { "$group": { "_id": null, "sum": { "$sum": "$plain" } } };
    let mut sums = test.orders().aggregate([sum]).await.unwrap();
    assert!(sums.advance().await.unwrap());
    assert_eq!(sums.deserialize_current().unwrap().get("sum"), Some(&Bson::from(200)));
    test.drop().await;
}

/// Makes the primary step down; it may be elected again.
async fn step_down(client: &Client) {
    crate::isolation::assert_in("outage");
    let command = doc! { "replSetStepDown": 1, "secondaryCatchUpPeriodSecs": 1, "force": true };
    // An error is expected, because the step-down closes the connection.
    let _ = client.database("admin").run_command(command).await;
}

mod fail_point {
    use super::*;

    /// The server fails each command as many times as a batch is retried.
    #[tokio::test]
    async fn saves_in_doubt_are_sent_again_but_applied_once() {
        for (fault, what) in [
            (doc! { "closeConnection": true }, "the connection breaks before the server sees it"),
            (doc! { "errorCode": 11602 }, "interrupted by a step-down"),
            (doc! { "errorCode": 50 }, "out of time"),
            (
                doc! { "writeConcernError": { "code": 91, "errmsg": "shutting down" } },
                "executed, but not acknowledged by the majority",
            ),
        ] {
            let bank = Bank::open().await;
            bank.add_many(50).await;
            bank.fail(doc! { "times": 3 }, fault).await;
            let saves = contend(&bank, 2).await;
            bank.fail("off", doc! {}).await;
            bank.check(&saves).await;
            let answered =
                saves.iter().filter(|(_, saved)| matches!(saved, Ok(Saved::Applied(_) | Saved::Conflict)));
            // A single save is sent by the driver, which tries twice.
            assert!(answered.count() + 3 >= saves.len(), "{what}");
            assert!(bank.together() > 0);
            bank.test.drop().await;
        }
    }

    /// Simulates a privilege that is missing for a minute.
    #[tokio::test]
    async fn a_refusal_that_passes_turns_no_batches_off() {
        let bank = Bank::open().await;
        bank.add_many(50).await;
        bank.fail("alwaysOn", doc! { "errorCode": 13 }).await;
        let saves = contend(&bank, 1).await;
        assert!(saves.iter().all(|(_, saved)| matches!(saved, Err(Error::Refused(_)))), "{saves:?}");
        bank.fail("off", doc! {}).await;
        bank.check(&saves).await;
        let before = bank.together();
        let saves = contend(&bank, 1).await;
        assert!(applied(&saves) >= 50);
        bank.check(&saves).await;
        assert!(bank.together() > before);
        bank.test.drop().await;
    }

    /// The first try is executed without acknowledgement by the majority; then the same command is refused.
    #[tokio::test]
    async fn a_late_refusal_hides_no_applied_save() {
        let admin = Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap().database("admin");
        let options = ClientOptions::parse(uri("OUTBOX_MONGODB_URI")).await.unwrap();
        let test = TestDatabase::create().await;
        let (executed, mut first) = tokio::sync::mpsc::unbounded_channel();
        let bank = Bank::with(test, options, true, move |event| {
            if let CommandEvent::Succeeded(succeeded) = event
                && succeeded.reply.contains_key("writeConcernError")
            {
                let _ = executed.send(());
            }
        });
        bank.add_many(20).await;
        let concern = doc! { "code": 91, "errmsg": "shutting down" };
        bank.fail(doc! { "times": 4 }, doc! { "writeConcernError": concern }).await;
        let name = bank.name.clone();
        let refuse = async {
            within("an executed batch", first.recv()).await;
            let data = doc! { "failCommands": ["update"], "appName": name, "errorCode": 13 };
            let point = doc! { "configureFailPoint": "failCommand", "mode": { "times": 12 }, "data": data };
            admin.run_command(point).await.unwrap();
        };
        let saves = join_all((0..20).map(|id| bank.append(id)));
        let (saves, ()) = within("the saves", async { tokio::join!(saves, refuse) }).await;
        bank.fail("off", doc! {}).await;
        bank.check(&saves).await;
        assert!(bank.together() > 0);
        bank.test.drop().await;
    }

    /// MongoDB interrupts the clear repeatedly, as during a slow failover.
    #[tokio::test]
    async fn a_clear_is_tried_while_its_claim_holds() {
        let recorder = crate::support::Recorder::held();
        let bank = Bank::open().await.delivering_to(recorder.clone());
        let mut account = Account::new(1);
        account.outbox.send(Named { name: "a".into() });
        bank.add(account).await;
        recorder.wait_tried(1).await;
        bank.fail(doc! { "times": 6 }, doc! { "errorCode": 11602 }).await;
        recorder.let_through(1);
        bank.test.wait_until(1, crate::support::is_empty).await;
        assert_eq!(recorder.wait_tried(1).await.len(), 1);
        bank.test.drop().await;
    }

    #[tokio::test]
    async fn final_refusals_reach_each_save_without_endless_retries() {
        let bank = Bank::open().await;
        bank.add_many(20).await;
        bank.fail("alwaysOn", doc! { "errorCode": 13 }).await;
        let saves = within("refusals", join_all((0..20).map(|id| bank.append(id)))).await;
        bank.fail("off", doc! {}).await;
        assert!(saves.iter().all(|(_, saved)| matches!(saved, Err(Error::Refused(_)))), "{saves:?}");
        bank.check(&saves).await;
        assert!(bank.together() > 0);
        bank.test.drop().await;
    }
}

/// These tests stop, block or slow down a server.
mod outage {
    use super::*;

    /// A server that is not a replica set refuses every batch.
    #[tokio::test]
    async fn a_server_without_retryable_writes_gets_single_saves() {
        let server = Standalone::start().await;
        let client = Client::with_uri_str(&server.uri).await.unwrap();
        let test = TestDatabase { database: client.database("t"), client, on_panic: None };
        let refused = Arc::new(AtomicUsize::new(0));
        let count = refused.clone();
        let options = ClientOptions::parse(&server.uri).await.unwrap();
        let bank = Bank::with(test, options, true, move |event| {
            if let CommandEvent::Failed(failed) = event
                && failed.command_name == "update"
            {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        bank.add_many(20).await;
        let mut accounts = bank.load_all(20).await;
        for _ in 0..2 {
            let saves = save_all(&bank, &mut accounts).await;
            assert!(saves.iter().all(|saved| matches!(saved, Ok(Saved::Applied(_)))), "{saves:?}");
        }
        let learned = refused.load(Ordering::Relaxed);
        save_all(&bank, &mut accounts).await;
        assert_eq!(refused.load(Ordering::Relaxed), learned, "the refusal is remembered");
    }

    /// Runs work with a clock that advances by a second whenever only timers are pending.
    async fn hurry<T>(work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        tokio::time::pause();
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                () = tokio::time::advance(std::time::Duration::from_secs(1)) => {}
            }
        };
        tokio::time::resume();
        done
    }

    /// Returns the errors of saves whose server is unreachable, alone and in a batch. The driver waits `patience` for a
    /// server.
    async fn save_while_the_server_is_away(patience: std::time::Duration, group_commit: bool) -> Vec<Error> {
        let server = Standalone::start().await;
        let client = Client::with_uri_str(&server.uri).await.unwrap();
        let test = TestDatabase { database: client.database("t"), client, on_panic: None };
        let mut options = ClientOptions::parse(&server.uri).await.unwrap();
        options.server_selection_timeout = Some(patience);
        let is_missed = Arc::new(Notify::new());
        let missed = is_missed.clone();
        options.sdam_event_handler = Some(EventHandler::callback(move |event| {
            if let SdamEvent::ServerDescriptionChanged(changed) = event
                && changed.new_description.server_type() == ServerType::Unknown
            {
                missed.notify_one();
            }
        }));
        let bank = Bank::with(test, options, group_commit, |_| {});
        bank.add_many(5).await;
        let mut accounts = bank.load_all(5).await;
        drop(server);
        within("the driver to miss the server", is_missed.notified()).await;

        let saves = async {
            let deleted = bank.accounts.delete(&accounts[4]).await;
            let other = bank.accounts.insert(Account::new(100));
            let (saves, inserted) = tokio::join!(save_all(&bank, &mut accounts[..4]), other);
            let mut errors = vec![deleted.unwrap_err(), inserted.unwrap_err()];
            errors.extend(saves.into_iter().map(Result::unwrap_err));
            errors
        };
        // The driver's own timeout uses a clock that doesn't run ahead, so the saves end by their own time limit.
        if patience > WRITE_TIMEOUT { hurry(saves).await } else { saves.await }
    }

    /// The time limit of a save. The driver's default timeout has the same length.
    const WRITE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

    #[tokio::test]
    async fn an_unreachable_server_makes_saves_unavailable() {
        let (brief, long) = (WRITE_TIMEOUT / 60, WRITE_TIMEOUT * 2);
        for (patience, words) in [(brief, "Server selection timeout"), (long, "no clear answer within 30 s")]
        {
            for group_commit in [true, false] {
                for error in save_while_the_server_is_away(patience, group_commit).await {
                    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
                    let source = std::error::Error::source(&error).unwrap().to_string();
                    assert!(source.contains(words), "{source}");
                }
            }
        }
    }

    /// P1: while the primary of three nodes steps down repeatedly, the outcome of each save is reported correctly.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stepdown_reports_every_save_as_it_was() {
        for group_commit in [true, false] {
            let bank = Bank::at("OUTBOX_TEST_MONGODB_RS3_URI", group_commit).await;
            bank.add_many(50).await;
            let other = Client::with_uri_str(uri("OUTBOX_TEST_MONGODB_RS3_URI")).await.unwrap();
            let saved = AtomicUsize::new(0);
            let savers = (0..64).map(|saver| {
                let (bank, saved) = (&bank, &saved);
                async move {
                    let mut saves = Vec::new();
                    for round in 0..16 {
                        saves.push(bank.append((saver * 7 + round * 13) % 50).await);
                        saved.fetch_add(1, Ordering::Relaxed);
                    }
                    saves
                }
            });
            let stepping = async {
                for wanted in [150, 600] {
                    while saved.load(Ordering::Relaxed) < wanted {
                        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    }
                    step_down(&other).await;
                }
            };
            let (saves, ()) =
                within("the savers to end", async { tokio::join!(join_all(savers), stepping) }).await;
            let saves: Vec<_> = saves.into_iter().flatten().collect();
            assert!(applied(&saves) > 50);
            bank.check(&saves).await;
            bank.test.drop().await;
        }
    }
}

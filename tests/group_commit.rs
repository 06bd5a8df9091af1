//! Saves in company: each has the answer that it would have had alone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod support;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use document_outbox::{
    Document, Error, Inline, Outbox, Store,
    store::{Inserted, Saved},
};
use futures::future::join_all;
use mongodb::{
    Client,
    bson::{Bson, Decimal128, Document as BsonDocument, Timestamp, doc, oid::ObjectId},
    event::{EventHandler, command::CommandEvent},
    options::ClientOptions,
};
use serde::{Deserialize, Serialize};
use support::{LONG, TestDatabase, uri};

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// An aggregate whose history tells which saves were applied.
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

impl Account {
    fn new(id: impl Into<Bson>) -> Self {
        Self { id: id.into(), history: Vec::new(), unique: None, outbox: Outbox::default() }
    }
}

impl Document for Account {
    type Id = Bson;
    fn id(&self) -> &Bson {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

/// A bank whose client counts the `update` commands it sends and those of more than one statement.
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
        let test = TestDatabase::on(variable).await;
        let name = format!("bank-{}", uuid::Uuid::now_v7().simple());
        let (alone, together) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (alone.clone(), together.clone());
        let mut options = ClientOptions::parse(uri(variable)).await.unwrap();
        options.app_name = Some(name.clone());
        options.command_event_handler = Some(EventHandler::callback(move |event| {
            if let CommandEvent::Started(started) = event
                && let Ok(statements) = started.command.get_array("updates")
            {
                let count = if statements.len() > 1 { &counts.1 } else { &counts.0 };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let client = Client::with_options(options).unwrap();
        let inline =
            Inline::builder(&client).group_commit(group_commit).deliver_to(support::Recorder::default());
        let collection = client.database(test.database.name()).collection::<BsonDocument>("orders");
        Self { accounts: Store::new(collection, &inline), test, name, alone, together }
    }

    async fn add(&self, account: Account) {
        assert!(matches!(self.accounts.insert(account).await.unwrap(), Inserted::Applied(..)));
    }

    async fn add_many(&self, count: i32) {
        join_all((0..count).map(|id| self.add(Account::new(id)))).await;
    }

    /// Reads are not what is tested: tried until they succeed.
    async fn load(&self, id: &Bson) -> document_outbox::Loaded<Account> {
        loop {
            if let Ok(account) = self.accounts.load(id).await {
                return account.expect("the account is there");
            }
        }
    }

    /// Appends a name to an account's history once: the name, and what became of it.
    async fn append(&self, id: impl Into<Bson>) -> (String, Result<Saved, Error>) {
        let name = uuid::Uuid::new_v4().to_string();
        let mut account = self.load(&id.into()).await;
        account.history.push(name.clone());
        let saved = self.accounts.save(&mut account).await;
        (name, saved)
    }

    /// How often each name stands in a history.
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

    /// The one thing that must hold whatever happens: what is reported as applied is there once, what is reported as not
    /// applied is not there.
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

    async fn fail(&self, mode: impl Into<Bson>, data: BsonDocument) {
        let mut all = doc! { "failCommands": ["update"], "appName": &self.name };
        all.extend(data);
        let command = doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": all };
        self.test.client.database("admin").run_command(command).await.unwrap();
    }

    fn together(&self) -> usize {
        self.together.load(Ordering::Relaxed)
    }
}

fn applied(saves: &[(String, Result<Saved, Error>)]) -> usize {
    saves.iter().filter(|(_, saved)| matches!(saved, Ok(Saved::Applied(_)))).count()
}

/// 256 savers on 50 documents, so that most of them are in each other's way.
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
async fn every_save_that_is_reported_as_applied_is_there_once_and_no_other_is() {
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
async fn a_save_that_comes_alone_is_sent_alone() {
    let bank = Bank::open().await;
    bank.add_many(1).await;
    for _ in 0..5 {
        assert!(matches!(bank.append(0).await.1, Ok(Saved::Applied(_))));
    }
    assert_eq!((bank.alone.load(Ordering::Relaxed), bank.together()), (5, 0));
    bank.test.drop().await;
}

/// In one burst: applied, conflict, gone, refused by a unique index, refused as too large.
#[tokio::test]
async fn each_save_of_a_batch_has_an_answer_of_its_own() {
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
                let error = saved.unwrap_err().to_string();
                assert!(error.contains("11000") || error.contains("duplicate"), "{id}: {error}");
            }
        }
    }
    assert!(bank.together() > 0);
    bank.test.drop().await;
}

#[tokio::test]
async fn whatever_the_type_of_id_a_miss_inserts_nothing() {
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

/// A transaction holds one document of a batch: the others don't wait for its end.
#[tokio::test]
async fn a_save_that_is_held_up_holds_up_no_other() {
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

/// The driver takes sessions from a pool: one of ours in there would have later writes answered without being made.
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
    let command = doc! { "replSetStepDown": 1, "secondaryCatchUpPeriodSecs": 1, "force": true };
    // What ends the connection is no answer.
    let _ = client.database("admin").run_command(command).await;
}

/// P1: on three nodes, with the primary stepping down again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outage_of_the_primary_makes_no_save_twice_and_reports_none_that_is_not_there() {
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

mod faults {
    use super::*;

    /// Each as often as a batch is tried again without giving up.
    #[tokio::test]
    async fn what_a_reply_leaves_open_is_asked_for_again_and_no_save_is_made_twice() {
        for (fault, what) in [
            (doc! { "closeConnection": true }, "the connection breaks before the server sees it"),
            (doc! { "errorCode": 11602 }, "interrupted by a step-down"),
            (doc! { "errorCode": 50 }, "out of time"),
            (
                doc! { "writeConcernError": { "code": 91, "errmsg": "shutting down" } },
                "executed, and no word of the majority",
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
            // A lone save among them is the driver's, which tries twice.
            assert!(answered.count() + 3 >= saves.len(), "{what}");
            assert!(bank.together() > 0);
            bank.test.drop().await;
        }
    }

    /// As where a user may update and not insert, which an upsert needs.
    #[tokio::test]
    async fn where_batches_are_not_allowed_each_save_goes_alone() {
        let bank = Bank::open().await;
        bank.add_many(50).await;
        bank.fail("alwaysOn", doc! { "errorCode": 13 }).await;
        let saves = contend(&bank, 1).await;
        bank.fail("off", doc! {}).await;
        bank.check(&saves).await;
        let before = bank.together();
        assert!(before > 0);
        let saves = contend(&bank, 1).await;
        assert!(applied(&saves) >= 50);
        bank.check(&saves).await;
        assert_eq!(bank.together(), before);
        bank.test.drop().await;
    }

    #[tokio::test]
    async fn what_the_server_refuses_for_good_is_told_to_each_and_not_repeated_for_ever() {
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

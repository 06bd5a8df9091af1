//! Tests rescuers with several patterns, with several delays, and with collections and databases that are
//! created later.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use document_outbox::command::{ProcessDocumentMessages, Reason};
use futures::future::join_all;
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
    event::{EventHandler, command::CommandEvent},
    options::ClientOptions,
};
use outbox_rescuer::{CancellationToken, NamespacePattern, RescueEvent, Rescuer, Settings};

use crate::support::*;

fn watching(world: &World, patterns: &[&str]) -> Settings {
    let own = |text: &&str| text.replace("DB", world.db.name()).parse::<NamespacePattern>().unwrap();
    world.settings().with(|settings| settings.watch = patterns.iter().map(own).collect())
}

/// Waits until this many streams are open.
async fn opened(running: &mut Running, mut streams: usize) {
    running
        .wait("the streams to open", |event| {
            streams -= usize::from(matches!(event, RescueEvent::Opened { .. }));
            (streams == 0).then_some(())
        })
        .await;
}

#[tokio::test]
async fn each_delay_has_its_own_stream_by_first_match() {
    let (world, commands) = (World::new().await, Recorder::new());
    let settings = watching(&world, &["DB.fast_*@1s", "DB.slow@1h", "DB.*"]);
    let settings = settings.with(|settings| settings.delay = DELAY * 3);
    let mut running = world.start(&commands, settings).await;
    opened(&mut running, 3).await;
    let insert = |name: &'static str| {
        let collection = world.db.collection::<Document>(name);
        async move { collection.insert_one(doc! { "_id": name, "outbox": [dated(0, 0)] }).await.unwrap() }
    };
    let saved = Instant::now();
    for name in ["slow", "other", "fast_1"] {
        insert(name).await;
    }
    while commands.distinct() < 2 {
        running.page().await;
    }
    assert_eq!(commands.ids(), ["fast_1", "other"].map(Bson::from));
    let taken = commands.taken();
    assert!(taken[0].1 - saved >= DELAY && taken[1].1 - saved >= DELAY * 3);
    let ids = world.positions().distinct("_id", doc! {}).await.unwrap();
    assert_eq!(ids, ["default", "default@1h", "default@1s"].map(Bson::from));
    assert_eq!(world.leases().count_documents(doc! { "kind": "stream" }).await.unwrap(), 3);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn later_databases_and_collections_are_watched_and_swept() {
    for reason in [Reason::Stream, Reason::Sweep] {
        let (world, commands) = (World::new().await, Recorder::new());
        let settings = watching(&world, &["DB_*.orders", "DB_*.order_*"]);
        let settings = match reason {
            Reason::Stream => settings,
            _ => settings.with(|settings| {
                settings.sweep_interval = DELAY;
                settings.delay = DELAY * 3600;
            }),
        };
        let mut running = world.started(&commands, settings).await;
        let later = |name: &str| world.client.database(&format!("{}_{name}", world.db.name()));
        let mut old = dated(60_000, 60_000);
        old.insert("attempts", 1);
        for (database, collection) in [("a", "orders"), ("b", "order_7"), ("b", "stock"), ("state", "orders")]
        {
            let collection = later(database).collection::<Document>(collection);
            index(&collection).await;
            collection.insert_one(doc! { "_id": collection.name(), "outbox": [old.clone()] }).await.unwrap();
        }
        // If the rescuer watched the state database, a command for an order in it would arrive between these
        // commands.
        let last = later("c").collection::<Document>("orders");
        index(&last).await;
        last.insert_one(doc! { "_id": "last", "outbox": [old] }).await.unwrap();
        while commands.distinct() < 3 {
            match reason {
                Reason::Stream => drop(running.page().await),
                _ => drop(running.swept().await),
            }
        }
        let mut ids: Vec<_> = commands.firsts().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
        ids.sort();
        assert_eq!(ids, ["last", "order_7", "orders"]);
        assert!(
            commands.taken().iter().all(|(command, _)| command.document.namespace.db != world.state.name())
        );
        running.stop().await.unwrap();
        for name in ["a", "b", "c"] {
            later(name).drop().await.unwrap();
        }
        world.end().await;
    }
}

#[tokio::test]
async fn a_collection_that_changes_its_stream_loses_nothing() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let running = world.started(&Recorder::new(), watching(&world, &["DB.*"])).await;
    running.stop().await.unwrap();
    orders.insert_one(doc! { "_id": "between", "outbox": [minimal()] }).await.unwrap();
    let commands = Recorder::new();
    let mut running = world.start(&commands, watching(&world, &["DB.orders@2s", "DB.*"])).await;
    while commands.distinct() < 1 {
        running.swept().await;
    }
    orders.insert_one(doc! { "_id": "afterwards", "outbox": [minimal()] }).await.unwrap();
    while commands.distinct() < 2 {
        running.page().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// Records the sweep's queries as the driver sends them.
fn counting(options: &mut ClientOptions) -> Arc<Mutex<HashMap<String, usize>>> {
    let counts: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let into = counts.clone();
    options.command_event_handler = Some(EventHandler::callback(move |event| {
        if let CommandEvent::Started(event) = event {
            let collection = event.command.get_str("collection").unwrap_or_default();
            let of_a_stream = event.command_name == "getMore" && collection.starts_with("$cmd");
            let of_state = event.db.ends_with("_state");
            // Each stream reads both ends of the oplog every few seconds, whether or not it sweeps.
            let of_oplog = event.db == "local";
            if !of_a_stream && !of_state && !of_oplog {
                *into.lock().unwrap().entry(event.command_name).or_default() += 1;
            }
        }
    }));
    counts
}

/// There are 500 collections in 100 databases, watched by two streams that share the budget.
#[tokio::test]
async fn many_collections_are_swept_within_the_budget() {
    const DATABASES: usize = 100;
    const COLLECTIONS: usize = 500;
    const RATE: u32 = 150;
    let own = World::new().await;
    let world = &own;
    let name = |number: usize| format!("{}_{number}", world.db.name());
    let name = &name;
    join_all((0..DATABASES).map(|number| async move {
        let database = world.client.database(&name(number));
        for collection in 0..COLLECTIONS / DATABASES {
            database.create_collection(format!("orders_{collection}")).await.unwrap();
        }
    }))
    .await;
    let settings = watching(world, &["DB_*.orders_0@2s", "DB_*.*"])
        .with(|settings| settings.sweep_queries_per_second = RATE);
    let mut options = ClientOptions::parse(mongodb_uri()).await.unwrap();
    let counts = counting(&mut options);
    let client = Client::with_options(options).unwrap();
    let rescuer = Rescuer::new(client, Recorder::new(), settings).unwrap();
    let (events, status) = (rescuer.subscribe(), rescuer.status());
    let (stop, begun) = (CancellationToken::new(), Instant::now());
    let task = tokio::spawn(rescuer.run(stop.clone()));
    let mut running = Running { events, status, stop, begun, task };
    let (mut budgeted, mut swept) = (0, 0);
    while swept < COLLECTIONS {
        let (collections, queries) = running
            .wait("a sweep", |event| match event {
                RescueEvent::SweepDone { collections, queries, cut_short, .. } => {
                    assert!(!cut_short);
                    Some((*collections, *queries))
                }
                _ => None,
            })
            .await;
        (budgeted, swept) = (budgeted + queries, swept + collections);
    }
    running.stop().await.unwrap();
    let took = begun.elapsed();
    let counts = counts.lock().unwrap().clone();
    let of = |names: &[&str]| names.iter().filter_map(|name| counts.get(*name)).sum::<usize>();
    let sent = of(&["find", "getMore", "listCollections", "listDatabases", "listIndexes"]);
    // Every collection of every database was read, and a query was sent for every turn taken from the budget.
    // Rounds in progress at the end may have sent further queries.
    assert!(sent >= swept, "{sent} for {swept}: {counts:?}");
    assert!(budgeted >= swept && sent >= budgeted, "{budgeted} turns of the budget, {counts:?}");
    // Queries are never sent sooner than the rate allows; how much later they are sent depends on the
    // machine.
    let least = Duration::from_secs(1) / RATE * u32::try_from(sent - 1).unwrap();
    assert!(took >= least, "{sent} in {took:?}");
    join_all((0..DATABASES).map(|number| async move {
        world.client.database(&name(number)).drop().await.unwrap();
    }))
    .await;
    own.end().await;
}

/// The stream and the sweep treat a name with a line break like any other name.
#[tokio::test]
async fn a_name_with_a_line_break_is_watched() {
    let (world, commands) = (World::new().await, Recorder::new());
    let mut running = world.started(&commands, watching(&world, &["DB.odd*", "DB.*_end"])).await;
    for (at, name) in ["odd\nname", "two\nlines_end", "no_end\n"].into_iter().enumerate() {
        let id = i32::try_from(at).unwrap();
        world
            .db
            .collection::<Document>(name)
            .insert_one(doc! { "_id": id, "outbox": [minimal()] })
            .await
            .unwrap();
    }
    while commands.distinct() < 2 {
        running.page().await;
    }
    let mut ids: Vec<_> = commands.firsts().iter().filter_map(Bson::as_i32).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1]);
    running.stop().await.unwrap();
    world.end().await;
}

/// Claims and failures by the library have dates and are left to the sweep. Changes that make an entry
/// deliverable without setting a date are found by the stream.
#[tokio::test]
async fn manually_repaired_or_released_entries_are_found() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let with = |name: &str, value: Bson| {
        let mut entry = minimal();
        entry.insert(name, value);
        entry
    };
    let mut claimed = dated(60_000, -3_600_000);
    claimed.extend(doc! { "claimed_by": "gone/1", "claims": 1 });
    let cases = [
        (with("attempts", Bson::Null), doc! { "$unset": { "outbox.0.attempts": "" } }),
        (with("type", 7.into()), doc! { "$set": { "outbox.0.type": "order.placed" } }),
        (claimed, doc! { "$unset": { "outbox.0.available_at": "", "outbox.0.claimed_by": "" } }),
    ];
    let mut expected = Vec::new();
    for (id, (entry, repair)) in cases.into_iter().enumerate() {
        let id = i32::try_from(id).unwrap();
        orders.insert_one(doc! { "_id": id, "outbox": [entry] }).await.unwrap();
        assert_eq!(running.page().await.2, 0, "{id}: not yet");
        orders.update_one(doc! { "_id": id }, repair).await.unwrap();
        assert_eq!(running.page().await.2, 1, "{id}: now");
        expected.push(Bson::from(id));
    }
    // The sweep may have read the document as well.
    let of_stream = |(command, _): &(ProcessDocumentMessages, Instant)| {
        (command.reason == Reason::Stream).then(|| command.document.id().clone())
    };
    assert_eq!(commands.taken().iter().filter_map(of_stream).collect::<Vec<_>>(), expected);

    // The stream doesn't show this claim, because a claim sets a date.
    let date = dated(0, -3_600_000).get("available_at").unwrap().clone();
    let claim = doc! { "$set": { "outbox.0.available_at": date, "outbox.0.claimed_by": "d/1" } };
    orders.update_many(doc! {}, claim).await.unwrap();
    orders.insert_one(doc! { "_id": "last", "outbox": [minimal()] }).await.unwrap();
    assert_eq!(running.page().await, (1, 1, 1));
    running.stop().await.unwrap();
    world.end().await;
}

//! Tests what the sweep finds without the stream.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use document_outbox::{
    SendFailure,
    command::{ProcessDocumentMessages, Reason},
};
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
    event::{EventHandler, command::CommandEvent},
    options::ClientOptions,
};
use outbox_rescuer::{CancellationToken, Commands, RescueEvent, Rescuer, Settings};
use tokio::sync::watch;

use crate::{
    odd_ids::{self, odd_ids, stored},
    support::*,
};

/// Settings that sweep so often that a test needn't wait.
fn sweeping(world: &World) -> Settings {
    world.settings().with(|settings| settings.sweep_interval = Duration::from_millis(50))
}

#[tokio::test]
async fn the_first_sweep_finds_older_entries_without_dates_too() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": "dated", "outbox": [dated(60_000, 60_000)] }).await.unwrap();
    orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
    orders.insert_one(doc! { "_id": "empty", "outbox": [] }).await.unwrap();
    let running = world.started(&commands, world.settings()).await;
    assert_eq!(commands.ids(), ["dated", "minimal"].map(Bson::from));
    assert!(commands.taken().iter().all(|(command, _)| command.reason == Reason::Sweep));
    running.stop().await.unwrap();
    world.end().await;
}

/// P2: each document is queued at least once, whatever names, types or bytes are in its `_id`.
#[tokio::test]
async fn every_id_that_the_server_stores_is_swept() {
    let (world, commands) = (World::new().await, Recorder::new());
    let (indexed, plain) = (world.indexed_orders().await, world.db.collection("without_index"));
    let ids = odd_ids();
    let documents: Vec<_> = ids.iter().map(|(_, id)| stored(id, vec![dated(60_000, 60_000)])).collect();
    odd_ids::insert(&indexed, &documents).await;
    odd_ids::insert(&plain, &documents).await;
    let running = world.started(&commands, world.settings()).await;
    assert_eq!(commands.taken().len(), 2 * ids.len());
    let expected = ids.iter().map(|(_, id)| id.as_bytes().to_vec()).collect();
    assert_eq!(commands.distinct_keys(), expected);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn an_expired_claim_is_swept_once_per_outbox_change() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut claimed = dated(60_000, -3000);
    claimed.extend(doc! { "claimed_by": "gone/1", "claims": 1 });
    let id = claimed.get("id").unwrap().clone();
    orders.insert_one(doc! { "_id": 1, "outbox": [claimed] }).await.unwrap();
    let mut running = world.started(&commands, sweeping(&world)).await;
    assert_eq!(commands.ids(), []);
    running.swept_something().await;
    for _ in 0..3 {
        assert_eq!(running.swept().await.1, 0, "the same state waits");
    }
    let failed = doc! { "$set": { "outbox.0.attempts": 1 }, "$unset": { "outbox.0.claimed_by": "" } };
    orders.update_one(doc! { "_id": 1, "outbox.id": id }, failed).await.unwrap();
    running.swept_something().await;
    assert_eq!(commands.ids(), [1, 1].map(Bson::from));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn an_untried_message_is_swept_after_the_delay() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": "young", "outbox": [dated(0, 0)] }).await.unwrap();
    orders.insert_one(doc! { "_id": "old", "outbox": [dated(60_000, 60_000)] }).await.unwrap();
    let settings = sweeping(&world).with(|settings| settings.delay = DELAY * 4);
    let mut running = world.started(&commands, settings).await;
    assert_eq!(commands.ids(), [Bson::from("old")]);
    running.swept_something().await;
    assert_eq!(commands.ids(), ["old", "young"].map(Bson::from));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn due_scheduled_messages_are_swept_but_never_dead_ones() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut dead = minimal();
    dead.insert("dead_at", mongodb::bson::DateTime::now());
    orders.insert_one(doc! { "_id": "dead", "outbox": [dead] }).await.unwrap();
    orders.insert_one(doc! { "_id": "later", "outbox": [dated(0, -3_600_000)] }).await.unwrap();
    orders.insert_one(doc! { "_id": "soon", "outbox": [dated(0, -900)] }).await.unwrap();
    let settings = sweeping(&world).with(|settings| settings.delay = Duration::from_hours(1));
    let mut running = world.started(&commands, settings).await;
    while commands.distinct() < 1 {
        running.swept().await;
    }
    assert_eq!(commands.ids(), [Bson::from("soon")]);
    running.stop().await.unwrap();
    world.end().await;
}

/// Entries are neither skipped nor read forever, although 700 documents share one millisecond and a page has
/// only 100 documents.
#[tokio::test]
async fn pages_neither_skip_nor_repeat_entries_of_one_date() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let (same, other) = (dated(60_000, 60_000), dated(90_000, 90_000));
    let entry = |from: &Document| {
        let mut entry = minimal();
        let dates = from.iter().filter(|(name, _)| name.ends_with("_at"));
        entry.extend(dates.map(|(name, date)| (name.clone(), date.clone())));
        entry
    };
    let documents: Vec<_> = (0..700)
        .map(|id| doc! { "_id": id, "outbox": [entry(&same), entry(&other), entry(&same)] })
        .collect();
    orders.insert_many(documents).await.unwrap();
    let mut running =
        world.start(&commands, world.settings().with(|settings| settings.page_size = 100)).await;
    let (examined, queued) = running
        .wait("a sweep", |event| match event {
            RescueEvent::SweepDone { examined, queued, .. } => Some((*examined, *queued)),
            _ => None,
        })
        .await;
    assert_eq!((examined, queued, commands.distinct()), (700, 700, 700));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_collection_without_index_is_reported_and_swept() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.orders();
    let filler = (0..12_000).map(|id| doc! { "_id": id });
    orders.insert_many(filler).await.unwrap();
    // This `_id` has another type and sorts after all numbers, so a comparison of numbers by `$gt` does not
    // find it.
    orders.insert_one(doc! { "_id": "text", "outbox": [minimal()] }).await.unwrap();
    orders.insert_one(doc! { "_id": -1, "outbox": [dated(60_000, 60_000)] }).await.unwrap();
    let mut running = world.start(&commands, sweeping(&world)).await;
    running
        .wait("the missing index", |event| matches!(event, RescueEvent::IndexMissing { .. }).then_some(()))
        .await;
    while commands.distinct() < 2 {
        running.swept().await;
    }
    assert_eq!(commands.ids(), [Bson::from(-1), Bson::from("text")]);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn unreadable_entries_are_reported_and_block_no_other() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let twice = minimal();
    let odd = doc! { "id": 7, "available_at": dated(9, 9).get("available_at").unwrap() };
    let outboxes = doc! {
        "_id": "odd", "outbox": [odd.clone()],
    };
    orders.insert_one(outboxes).await.unwrap();
    let mut other = twice.clone();
    other.insert("payload", 2);
    orders.insert_one(doc! { "_id": "again", "outbox": [twice.clone(), twice.clone()] }).await.unwrap();
    orders.insert_one(doc! { "_id": "twice", "outbox": [twice, other] }).await.unwrap();
    orders.insert_one(doc! { "_id": "mixed", "outbox": [odd, minimal()] }).await.unwrap();
    let mut running = world.start(&commands, world.settings()).await;
    let mut announced = std::collections::HashSet::new();
    running
        .wait("a sweep", |event| match event {
            RescueEvent::Unreadable { document, .. } => {
                announced.insert(document.subject());
                None
            }
            RescueEvent::SweepDone { .. } => Some(()),
            _ => None,
        })
        .await;
    assert_eq!(announced.len(), 3, "{announced:?}");
    let mut queued = commands.ids();
    queued.sort_by_key(ToString::to_string);
    assert_eq!(queued, ["again", "mixed"].map(Bson::from), "a message that was pushed twice counts once");
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn an_unreadable_payload_is_queued_once_and_reported() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut bad = dated(60_000, 60_000);
    bad.insert("payload", "QQQQ");
    let document = doc! { "_id": "bad", "outbox": [bad] };
    let mut bytes = mongodb::bson::RawDocumentBuf::try_from(&document).unwrap().into_bytes();
    let at = bytes.windows(4).position(|four| four == b"QQQQ").unwrap();
    bytes[at..at + 4].fill(0xff);
    let raw = mongodb::bson::RawDocumentBuf::from_bytes(bytes).unwrap();
    orders.clone_with_type::<mongodb::bson::RawDocumentBuf>().insert_one(raw).await.unwrap();

    let settings = sweeping(&world).with(|settings| settings.requeue_pause = Duration::from_millis(1));
    let mut running = world.start(&commands, settings).await;
    let reason = running
        .wait("the unreadable payload", |event| match event {
            RescueEvent::Unreadable { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert!(reason.contains("`payload`"), "{reason}");
    for _ in 0..3 {
        running.swept().await;
    }
    assert_eq!(commands.ids(), [Bson::from("bad")]);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_full_round_with_failed_commands_is_repeated() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    commands.away.store(true, Ordering::SeqCst);
    orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
    // After its first start, a rescuer makes two full sweeps. With this delay, the second full sweep would
    // run long after the test.
    let settings = sweeping(&world).with(|settings| settings.delay = DELAY * 600);
    let mut running = world.start(&commands, settings).await;
    for _ in 0..2 {
        assert_eq!(running.swept().await, (true, 0));
    }
    commands.away.store(false, Ordering::SeqCst);
    running.swept_something().await;
    assert_eq!(commands.ids(), [Bson::from("minimal")]);
    running.swept().await;
    assert!(!running.swept().await.0, "a complete full round is not repeated");
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn views_and_time_series_are_skipped() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    world.db.run_command(doc! { "create": "open", "viewOn": "orders", "pipeline": [] }).await.unwrap();
    world.db.run_command(doc! { "create": "clicks", "timeseries": { "timeField": "at" } }).await.unwrap();
    let mut running = world.start(&commands, world.settings()).await;
    let (collections, cut_short) = running
        .wait("a sweep", |event| match event {
            RescueEvent::SweepDone { collections, cut_short, .. } => Some((*collections, *cut_short)),
            _ => None,
        })
        .await;
    assert_eq!((collections, cut_short, commands.ids().len()), (1, false, 1));
    running.stop().await.unwrap();
    world.end().await;
}

/// Checks the cost of a round, as the server reports it.
#[tokio::test]
async fn a_round_examines_only_the_due_entries() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let stored = (0..3000).map(|id| doc! { "_id": id, "outbox": [] });
    orders.insert_many(stored).await.unwrap();
    let due = (3000..3010).map(|id| doc! { "_id": id, "outbox": [dated(60_000, 60_000)] });
    orders.insert_many(due).await.unwrap();
    world.db.run_command(doc! { "profile": 2 }).await.unwrap();
    let commands = Recorder::new();
    let settings = world.settings().with(|settings| {
        settings.delay = DELAY * 30;
        // Counting has its own queries, which begin after the first round.
        settings.count_totals = false;
    });
    let running = world.started(&commands, settings).await;
    world.db.run_command(doc! { "profile": 0 }).await.unwrap();
    assert_eq!(commands.distinct(), 10);
    let mut finds = world
        .db
        .collection::<Document>("system.profile")
        .find(doc! { "command.find": "orders", "appName": &world.app_name })
        .await
        .unwrap();
    let (mut count, mut keys, mut documents) = (0, 0, 0);
    while finds.advance().await.unwrap() {
        let profile = finds.deserialize_current().unwrap();
        let number = |name: &str| profile.get_i32(name).unwrap();
        (count, keys, documents) =
            (count + 1, keys + number("keysExamined"), documents + number("docsExamined"));
        assert!(!profile.contains_key("hasSortStage"));
    }
    assert!(count == 2 && keys <= 13 && documents == 10, "{count} finds, {keys} keys, {documents} documents");
    running.stop().await.unwrap();
    world.end().await;
}

/// The first round fills the memory for queued documents, but every document is still queued.
#[tokio::test]
async fn a_full_memory_delays_documents_and_stops_no_collection() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let stock = world.db.collection::<Document>("stock");
    index(&stock).await;
    let documents = |from: i32| {
        (from..from + 5).map(|id| doc! { "_id": id, "outbox": [dated(60_000, 60_000)] }).collect::<Vec<_>>()
    };
    orders.insert_many(documents(0)).await.unwrap();
    stock.insert_many(documents(10)).await.unwrap();
    let requeue_pause = Duration::from_millis(100);
    let settings = sweeping(&world).with(|settings| {
        settings.queued_capacity = 2;
        settings.page_size = 1;
        settings.requeue_pause = requeue_pause;
    });
    let mut running = world.start(&commands, settings).await;
    while commands.distinct() < 10 {
        running.swept_something().await;
        // Meanwhile deliveries continue.
        let delivered = commands.ids();
        let delivered = doc! { "_id": { "$in": delivered } };
        orders.update_many(delivered.clone(), doc! { "$set": { "outbox": [] } }).await.unwrap();
        stock.update_many(delivered, doc! { "$set": { "outbox": [] } }).await.unwrap();
    }
    orders.insert_one(doc! { "_id": 20, "outbox": [dated(60_000, 60_000)] }).await.unwrap();
    while commands.distinct() < 11 {
        running.swept_something().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// A scan that takes two rounds reaches the end of its collection, although full rounds follow each other
/// without a pause.
#[tokio::test]
async fn full_rounds_also_resume_a_scan() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.orders();
    orders.insert_many((0..21_000).map(|id| doc! { "_id": id })).await.unwrap();
    orders.insert_one(doc! { "_id": "last", "outbox": [minimal()] }).await.unwrap();
    let interval = Duration::from_millis(50);
    let settings = world.settings().with(|settings| {
        settings.sweep_interval = interval;
        settings.full_sweep_interval = interval;
    });
    let mut running = world.start(&commands, settings).await;
    let mut rounds = 0;
    while commands.distinct() < 1 {
        assert!(running.swept().await.0, "every round is full");
        rounds += 1;
        assert!(rounds <= 5, "the scan doesn't end");
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// An index of all documents contains documents without an entry at the same place as entries without a date.
#[tokio::test]
async fn a_scan_finds_undated_entries_despite_a_full_index() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.orders();
    let whole = mongodb::IndexModel::builder().keys(doc! { "outbox.available_at": 1 }).build();
    orders.create_index(whole).await.unwrap();
    orders.insert_many((0..21_000).map(|id| doc! { "_id": id, "outbox": [] })).await.unwrap();
    orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
    orders.insert_one(doc! { "_id": "dated", "outbox": [dated(60_000, 60_000)] }).await.unwrap();
    let mut running = world.start(&commands, sweeping(&world)).await;
    assert!(running.swept().await.0);
    assert_eq!(commands.ids(), [Bson::from("dated")], "the scan has not ended");
    running.swept_something().await;
    assert_eq!(commands.ids(), ["dated", "minimal"].map(Bson::from));
    running.stop().await.unwrap();
    world.end().await;
}

/// The message was saved before the stream begins, and is too young for the sweep at the start.
#[tokio::test]
async fn a_young_undated_entry_is_found_after_a_delay() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut young = dated(0, 0);
    young.remove("available_at");
    orders.insert_one(doc! { "_id": "young", "outbox": [young] }).await.unwrap();
    let settings = world.settings().with(|settings| settings.delay = DELAY * 4);
    let mut running = world.started(&commands, settings).await;
    assert_eq!(commands.ids(), []);
    running.swept_something().await;
    assert_eq!(commands.ids(), [Bson::from("young")]);
    running.stop().await.unwrap();
    world.end().await;
}

/// P7: there are more entries without a date than can be remembered, but one full round queues every
/// document.
#[tokio::test]
async fn a_full_sweep_queues_more_than_it_remembers() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_many((0..40).map(|id| doc! { "_id": id, "outbox": [minimal()] })).await.unwrap();
    let settings = sweeping(&world).with(|settings| {
        settings.queued_capacity = 15;
        settings.page_size = 10;
        // The pauses are so long that none ends, and so no room becomes free, before the first
        // round has ended.
        settings.requeue_pause = Duration::from_secs(3);
        settings.delay = Duration::from_hours(1);
    });
    let mut running = world.start(&commands, settings).await;
    let (queued, unfinished) = running
        .wait("a sweep", |event| match event {
            RescueEvent::SweepDone { queued, unfinished, .. } => Some((*queued, *unfinished)),
            _ => None,
        })
        .await;
    assert_eq!(
        (queued, unfinished),
        (15, 1),
        "all documents that can be remembered, with the collection unfinished"
    );
    while commands.distinct() < 40 {
        running.swept().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// P5: a collection's messages do not wait for other collections. Each collection here has a backlog, so
/// if the collections were read one after another, one of them would have to wait for the rest, whatever
/// the order in which the server lists them.
#[tokio::test]
async fn a_backlog_delays_no_other_collection() {
    const NAMES: [&str; 4] = ["a", "b", "y", "z"];
    const PAGE: usize = 5;
    let (world, commands) = (World::new().await, Recorder::new());
    for name in NAMES {
        let backlog = world.db.collection::<Document>(name);
        index(&backlog).await;
        let documents =
            (0..60).map(|id| doc! { "_id": format!("{name}{id}"), "outbox": [dated(60_000, 60_000)] });
        backlog.insert_many(documents).await.unwrap();
    }
    let settings = world.settings().with(|settings| settings.page_size = PAGE);
    let mut running = world.start(&commands, settings).await;
    assert_eq!(running.swept().await.1, 240);

    let queued = commands.ids();
    for name in NAMES {
        let is_first = |id: &Bson| id.as_str().is_some_and(|id| id.starts_with(name));
        let before = queued.iter().position(is_first).unwrap();
        assert!(
            before < NAMES.len() * PAGE,
            "a page of each other collection goes before {name} at most, not {before} documents"
        );
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// The first slice was read when its entry was too young, and the scan is still in progress when the
/// second full sweep begins.
#[tokio::test]
async fn a_full_sweep_during_a_scan_is_complete() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.orders();
    let whole = mongodb::IndexModel::builder().keys(doc! { "outbox.available_at": 1 }).build();
    orders.create_index(whole).await.unwrap();
    orders.insert_many((0..21_000).map(|id| doc! { "_id": id, "outbox": [] })).await.unwrap();
    let mut undated = dated(0, 0);
    undated.remove("available_at");
    orders.insert_one(doc! { "_id": -1, "outbox": [undated] }).await.unwrap();
    let settings = world.settings().with(|settings| {
        settings.delay = DELAY * 2;
        settings.sweep_interval = DELAY * 5;
    });
    let mut running = world.start(&commands, settings).await;
    running.swept_something().await;
    assert_eq!(commands.ids(), [Bson::from(-1)]);
    running.stop().await.unwrap();
    world.end().await;
}

/// P7: the first owner ended before the sweep for messages that were too young at its start, and its saved
/// position is already after these messages.
#[tokio::test]
async fn the_next_owner_sweeps_young_undated_entries() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut settings = world.settings();
    settings.delay = DELAY * 3;
    let mut young = dated(0, 0);
    young.remove("available_at");
    orders.insert_one(doc! { "_id": 1, "outbox": [young] }).await.unwrap();

    let mut first = world.start(&commands, settings.clone()).await;
    first.swept().await;
    first.stop().await.unwrap();
    let mut next = world.start(&commands, settings).await;
    while commands.ids().is_empty() {
        next.swept_something().await;
    }
    assert_eq!(commands.firsts(), [Bson::from(1)]);
    next.stop().await.unwrap();
    world.end().await;
}

/// No entry depends on a single command, even if only a full round or the stream finds it.
#[tokio::test]
async fn an_undated_document_is_read_again_by_ordinary_rounds() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    let settings = sweeping(&world).with(|settings| {
        settings.requeue_pause = Duration::from_millis(100);
        settings.delay = Duration::from_hours(1);
    });
    let mut running = world.start(&commands, settings).await;
    while commands.ids().len() < 4 {
        running.swept_something().await;
    }
    let full = running.swept().await.0;
    assert!(!full, "no full round is needed for it");
    running.stop().await.unwrap();
    world.end().await;
}

/// P8: collections that match a pattern but have no outbox cause no work and no alert.
#[tokio::test]
async fn a_collection_without_outboxes_costs_nothing_once_read() {
    let (world, commands) = (World::new().await, Recorder::new());
    let sessions = world.db.collection::<Document>("sessions");
    sessions.insert_many((0..100).map(|id| doc! { "_id": id, "user": "u" })).await.unwrap();
    let mut running = world.start(&commands, sweeping(&world)).await;
    let mut collections = Vec::new();
    while collections.len() < 4 {
        let swept = |event: &RescueEvent| match event {
            RescueEvent::SweepDone { collections, .. } => Some(*collections),
            RescueEvent::IndexMissing { .. } => panic!("it needs no index"),
            _ => None,
        };
        collections.push(running.wait("a sweep", swept).await);
    }
    assert_eq!(collections, [1, 0, 0, 0]);
    // From its first outbox on, the collection is treated like any other.
    sessions.insert_one(doc! { "_id": "first", "outbox": [minimal()] }).await.unwrap();
    running
        .wait("the missing index", |event| matches!(event, RescueEvent::IndexMissing { .. }).then_some(()))
        .await;
    assert_eq!(running.status.snapshot().streams[0].problems.len(), 1);
    running.stop().await.unwrap();
    world.end().await;
}

/// One entry has a text that is not valid UTF-8, which the server stores anyway.
#[tokio::test]
async fn an_entry_with_invalid_utf8_spares_its_neighbours() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut odd = minimal();
    odd.insert("headers", doc! { "a": "MARK" });
    let insert = doc! {
        "insert": orders.name(), "documents": [{ "_id": 1, "outbox": [odd, minimal()] }, { "_id": 2, "outbox": [minimal()] }],
    };
    let mut bytes = mongodb::bson::RawDocumentBuf::try_from(&insert).unwrap().into_bytes();
    let at = bytes.windows(4).position(|window| window == b"MARK").unwrap();
    bytes[at..at + 4].fill(0xff);
    let insert = mongodb::bson::RawDocumentBuf::from_bytes(bytes).unwrap();
    world.db.run_raw_command(insert).await.unwrap();
    let mut running = world.start(&commands, world.settings()).await;
    running
        .wait("the odd entry", |event| match event {
            RescueEvent::Unreadable { document, count: 1, .. } if document.subject() == "1" => Some(()),
            _ => None,
        })
        .await;
    while commands.distinct() < 2 {
        running.swept().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// Counts the documents for which there was a command.
struct Counting {
    seen: Mutex<HashSet<i32>>,
    count: watch::Sender<usize>,
}

#[async_trait::async_trait]
impl Commands for Counting {
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        let mut seen = self.seen.lock().unwrap();
        seen.extend(commands.iter().filter_map(|command| command.document.id().as_i32()));
        self.count.send_replace(seen.len());
        vec![Ok(()); commands.len()]
    }

    async fn ready(&self) {}
}

/// Queues every `_id` of 150,000 documents with the default settings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_full_sweep_queues_150_000_undated_documents() {
    let (count, mut counted) = watch::channel(0);
    let commands = Arc::new(Counting { seen: Mutex::default(), count });
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    for from in (0..150_000).step_by(10_000) {
        let documents = (from..from + 10_000).map(|id| doc! { "_id": id, "outbox": [minimal()] });
        orders.insert_many(documents).await.unwrap();
    }
    // Each term remembers only the documents that it queued itself, so no term may end during this test,
    // even on a busy machine.
    let lease = Duration::from_mins(1);
    let settings = world.settings().with(|settings| {
        settings.ownership_lease = lease;
        settings.sweep_interval = DELAY * 10;
        settings.sweep_queries_per_second = 50;
    });
    let running = world.start(&commands, settings).await;
    let all = counted.wait_for(|count| *count >= 150_000);
    let is_complete = tokio::time::timeout(Duration::from_mins(10), all).await.is_ok();
    assert!(is_complete, "{} documents have had a command", *counted.borrow());
    running.stop().await.unwrap();
    world.end().await;
}

/// The collections that the sweep queries, in the order of the driver's commands.
fn swept_collections(options: &mut ClientOptions) -> Arc<Mutex<Vec<String>>> {
    let queried: Arc<Mutex<Vec<String>>> = Arc::default();
    let into = queried.clone();
    options.command_event_handler = Some(EventHandler::callback(move |event| {
        if let CommandEvent::Started(event) = event {
            let key = if event.command_name == "getMore" { "collection" } else { "find" };
            if let Ok(collection) = event.command.get_str(key) {
                into.lock().unwrap().push(collection.to_owned());
            }
        }
    }));
    queried
}

/// Every round reads 300,000 documents whose due messages wait behind a claimed first message. Another
/// collection is still read as often as without these documents, so a retry in that collection is not late.
#[tokio::test]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_retry_among_many_held_documents_is_punctual() {
    const RATE: u32 = 50;
    const INTERVAL: Duration = Duration::from_secs(2);
    let (world, commands) = (World::new().await, Recorder::new());
    let held = world.db.collection::<Document>("held");
    index(&held).await;
    let mut claimed = dated(60_000, -3_600_000);
    claimed.insert("claimed_by", "dispatcher/1");
    for from in (0..300_000).step_by(10_000) {
        let outbox = [claimed.clone(), dated(60_000, 60_000)];
        let documents = (from..from + 10_000).map(|id| doc! { "_id": id, "outbox": outbox.to_vec() });
        held.insert_many(documents).await.unwrap();
    }
    let orders = world.indexed_orders().await;
    let mut retry = dated(60_000, -3_000);
    retry.insert("attempts", 1);
    orders.insert_one(doc! { "_id": "retry", "outbox": [retry] }).await.unwrap();

    let mut options = ClientOptions::parse(mongodb_uri()).await.unwrap();
    let queried = swept_collections(&mut options);
    let settings = world.settings().with(|settings| {
        settings.sweep_interval = INTERVAL;
        settings.sweep_queries_per_second = RATE;
        settings.count_totals = false;
    });
    let client = Client::with_options(options).unwrap();
    let rescuer = Rescuer::new(client, commands.clone(), settings).unwrap();
    let (events, status) = (rescuer.subscribe(), rescuer.status());
    let (stop, begun) = (CancellationToken::new(), Instant::now());
    let task = tokio::spawn(rescuer.run(stop.clone()));
    let mut running = Running { events, status, stop, begun, task };
    let is_long = |queried: &[String]| queried.iter().filter(|name| *name == "held").count() > 150;
    while commands.distinct() < 1 || !is_long(&queried.lock().unwrap()) {
        running.begun = Instant::now();
        running.swept().await;
    }
    running.stop().await.unwrap();

    // A round has at most this many queries, and the other collection is read in each round.
    let most = (RATE * u32::try_from(INTERVAL.as_secs()).unwrap() + 1) as usize;
    let queried = queried.lock().unwrap().clone();
    let between = queried
        .split(|name| name == "orders")
        .map(|names| names.iter().filter(|name| *name == "held").count());
    let longest = between.max().unwrap();
    println!("up to {longest} queries of the backlog between two of the retry's collection");
    assert!(longest <= most, "{longest} queries of the backlog in between, not {most}");
    world.end().await;
}

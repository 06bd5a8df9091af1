//! Tests how the change stream treats changes.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Instant,
};

use document_outbox::command::Reason;
use mongodb::{
    Client,
    bson::{Bson, DateTime, Document, Timestamp, doc},
    event::{EventHandler, command::CommandEvent},
    options::ClientOptions,
};
use outbox_rescuer::{CancellationToken, ReopenCause, RescueEvent, Rescuer};

use crate::{
    odd_ids::{self, odd_ids, stored},
    support::*,
};

#[tokio::test]
async fn a_foreign_push_waits_for_the_delay() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let saved = Instant::now();
    orders.insert_one(doc! { "_id": "o-1", "outbox": [minimal()] }).await.unwrap();
    running.page().await;
    let taken = commands.taken();
    assert_eq!(taken.len(), 1);
    let (command, at) = &taken[0];
    assert_eq!((command.document.id(), command.reason), (Bson::from("o-1"), Reason::Stream));
    let late = at.duration_since(saved);
    // The `wallTime` of the insert is a moment after `saved`. The server and the test share a clock, to the
    // millisecond.
    assert!(late >= DELAY && late < DELAY * 10, "{late:?}");
    running.stop().await.unwrap();
    world.end().await;
}

/// P2: each document is queued at least once, whatever names, types or bytes are in its `_id`.
#[tokio::test]
async fn every_id_that_the_server_stores_is_queued() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let ids = odd_ids();
    let documents: Vec<_> = ids.iter().map(|(_, id)| stored(id, vec![minimal()])).collect();
    odd_ids::insert(&orders, &documents).await;
    while commands.distinct_keys().len() < ids.len() {
        running.page().await;
    }
    let expected = ids.iter().map(|(_, id)| id.as_bytes().to_vec()).collect();
    assert_eq!(commands.distinct_keys(), expected);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn every_way_of_filling_an_outbox_is_seen() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let documents = (0..9).map(|id| doc! { "_id": id, "outbox": [] });
    orders.insert_many(documents).await.unwrap();
    for id in [2, 6, 7, 8] {
        orders.update_one(doc! { "_id": id }, push(dated(0, -3_600_000))).await.unwrap();
    }
    let mut running = world.started(&commands, world.settings()).await;
    orders.insert_one(doc! { "_id": 10, "outbox": [minimal()] }).await.unwrap();
    orders.update_one(doc! { "_id": 1 }, push(minimal())).await.unwrap();
    orders.update_one(doc! { "_id": 2 }, push(minimal())).await.unwrap();
    orders.replace_one(doc! { "_id": 3 }, doc! { "outbox": [minimal()] }).await.unwrap();
    orders.update_one(doc! { "_id": 4 }, doc! { "$set": { "outbox": [minimal()] } }).await.unwrap();
    let staged = vec![doc! { "$set": { "outbox": { "$concatArrays": ["$outbox", [minimal()]] } } }];
    orders.update_one(doc! { "_id": 5 }, staged).await.unwrap();
    // One entry replaces another: the server shows each field that differs.
    let replaced = vec![doc! { "$set": { "outbox": [dated(60_000, 60_000)] } }];
    orders.update_one(doc! { "_id": 6 }, replaced).await.unwrap();
    orders.update_one(doc! { "_id": 7 }, doc! { "$set": { "outbox.0": minimal() } }).await.unwrap();
    let fields = minimal().into_iter().map(|(name, value)| (format!("outbox.1.{name}"), value));
    let fields: Document = fields.collect();
    orders.update_one(doc! { "_id": 8 }, doc! { "$set": fields }).await.unwrap();
    while commands.distinct() < 9 {
        running.page().await;
    }
    let mut ids = commands.firsts();
    ids.sort_by_key(Bson::as_i32);
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 10].map(Bson::from));
    running.stop().await.unwrap();
    world.end().await;
}

/// P5: an entry without a date needs a command when the message before it dies. No sweep would find the entry
/// soon, and the stream queued nothing for the entry while the message before it was claimed.
#[tokio::test]
async fn a_death_wakes_the_undated_entries_behind_it() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut claimed = dated(60_000, -3_600_000);
    claimed.insert("claimed_by", "worker/1");
    orders.insert_one(doc! { "_id": 1, "outbox": [claimed] }).await.unwrap();
    let mut running = world.started(&commands, world.settings()).await;
    orders.update_one(doc! { "_id": 1 }, push(minimal())).await.unwrap();
    assert_eq!(running.page().await, (1, 1, 0), "the head is claimed");

    let death = doc! {
        "$set": { "outbox.0.dead_at": DateTime::now(), "outbox.0.dead_reason": "permanent" },
        "$unset": { "outbox.0.available_at": "", "outbox.0.claimed_by": "" },
    };
    orders.update_one(doc! { "_id": 1 }, death).await.unwrap();
    assert_eq!(running.page().await, (1, 1, 1));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn unrelated_changes_and_emptied_outboxes_give_no_command() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let delivered = minimal();
    let pull = doc! { "$pull": { "outbox": { "id": delivered.get("id").unwrap() } } };
    orders.insert_one(doc! { "_id": 1, "outbox": [delivered] }).await.unwrap();
    orders.update_one(doc! { "_id": 1 }, pull).await.unwrap();
    orders.insert_one(doc! { "_id": 2, "outbox": [] }).await.unwrap();
    orders.insert_one(doc! { "_id": 3, "outbox": "none" }).await.unwrap();
    orders.update_one(doc! { "_id": 2 }, doc! { "$set": { "paid": true, "outboxes": [1] } }).await.unwrap();
    orders.insert_one(doc! { "_id": "last", "outbox": [minimal()] }).await.unwrap();
    let mut changes = 0;
    while commands.ids().is_empty() {
        changes += running.page().await.0;
    }
    assert_eq!(commands.ids(), [Bson::from("last")]);
    assert_eq!(
        changes, 3,
        "only the filling of 1 and of `last`, and the odd outbox of 3, came over the wire"
    );
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_fresh_message_is_left_to_inline_dispatch() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let settings = world.settings().with(|settings| settings.delay = DELAY * 5);
    let mut running = world.started(&commands, settings).await;
    let first = minimal();
    let first_id = first.get("id").unwrap().clone();
    orders.insert_one(doc! { "_id": 1, "outbox": [first] }).await.unwrap();
    running.wait("a held change", |event| matches!(event, RescueEvent::Holding { .. }).then_some(())).await;
    let delivered = doc! { "$pull": { "outbox": { "id": first_id } } };
    orders.update_one(doc! { "_id": 1 }, delivered).await.unwrap();
    // The entry is due. Its date is just before the time of the page, even on a slow machine.
    let ahead = dated(-3000, 0);
    orders.update_one(doc! { "_id": 1 }, push(ahead)).await.unwrap();
    assert_eq!(running.page().await, (1, 1, 0));
    assert_eq!(commands.ids(), []);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_page_queues_each_of_its_documents_once() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let documents: Vec<_> = (0..1000).map(|id| doc! { "_id": id, "outbox": [minimal()] }).collect();
    orders.insert_many(documents).await.unwrap();
    for _ in 0..50 {
        orders.update_one(doc! { "_id": 0 }, push(minimal())).await.unwrap();
    }
    let (mut changes, mut pages, mut looked_up) = (0, 0, 0);
    while changes < 1050 {
        let page = running.page().await;
        (changes, looked_up, pages) = (changes + page.0, looked_up + page.1, pages + 1);
    }
    assert_eq!(commands.distinct(), 1000);
    assert!(pages <= 60 && looked_up < 1050, "{pages} pages, {looked_up} documents");
    running.stop().await.unwrap();
    world.end().await;
}

/// Changes of a document before it was found empty need no second read, but later changes do.
#[tokio::test]
async fn a_changed_document_found_empty_is_read_again() {
    const MANY: i32 = 300;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_many((0..MANY).map(|id| doc! { "_id": id, "outbox": [] })).await.unwrap();
    let mut running = world.started(&commands, world.settings()).await;
    // The outbox is filled and emptied until a page is large enough for the document to be remembered.
    let mut largest = 0;
    while largest < 100 {
        orders.update_many(doc! {}, push(minimal())).await.unwrap();
        orders.update_many(doc! {}, doc! { "$set": { "outbox": [] } }).await.unwrap();
        let mut changes = 0;
        while changes < MANY as usize {
            let page = running.page().await;
            changes += page.0;
            largest = largest.max(page.0);
        }
    }
    assert_eq!(commands.distinct(), 0);
    orders.update_many(doc! {}, push(minimal())).await.unwrap();
    // The sweep also finds these documents, but is not tested here.
    let by_stream =
        || commands.taken().iter().filter(|(command, _)| command.reason == Reason::Stream).count();
    while by_stream() < MANY as usize {
        running.page().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_retrying_message_does_not_block_unordered_collections() {
    let (world, commands) = (World::new().await, Recorder::new());
    let mails = world.db.collection::<Document>("mails");
    let orders = world.indexed_orders().await;
    index(&mails).await;
    let unordered = format!("{}.mails", world.db.name()).parse().unwrap();
    let settings = world.settings().with(|settings| settings.unordered = vec![unordered]);
    let mut running = world.started(&commands, settings).await;
    for (collection, id) in [(&orders, "order"), (&mails, "mail")] {
        let mut retrying = dated(60_000, -600_000);
        retrying.insert("attempts", 1);
        collection.insert_one(doc! { "_id": id, "outbox": [retrying, minimal()] }).await.unwrap();
    }
    let mut changes = 0;
    while changes < 2 {
        changes += running.page().await.0;
    }
    assert_eq!(commands.ids(), [Bson::from("mail")]);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_recreated_collection_is_still_watched() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let one = format!("{}.orders", world.db.name()).parse().unwrap();
    let settings = world.settings().with(|settings| settings.watch = vec![one]);
    let mut running = world.started(&commands, settings).await;
    orders.drop().await.unwrap();
    orders.insert_one(doc! { "_id": "anew", "outbox": [minimal()] }).await.unwrap();
    running
        .wait("the stream to be opened again", |event| {
            matches!(event, RescueEvent::Reopened { cause: ReopenCause::Invalidated }).then_some(())
        })
        .await;
    running.page().await;
    assert_eq!(commands.ids(), [Bson::from("anew")]);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_recreated_database_is_still_watched() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    world.db.drop().await.unwrap();
    orders.insert_one(doc! { "_id": "anew", "outbox": [minimal()] }).await.unwrap();
    running.page().await;
    assert_eq!(commands.ids(), [Bson::from("anew")]);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn collections_of_several_databases_are_watched_by_one_stream() {
    let (world, commands) = (World::new().await, Recorder::new());
    let other = world.client.database(&format!("{}_b", world.db.name()));
    let watch = [world.db.name(), other.name()].map(|name| format!("{name}.*").parse().unwrap());
    let settings = world.settings().with(|settings| settings.watch = watch.to_vec());
    let mut running = world.started(&commands, settings).await;
    world.orders().insert_one(doc! { "_id": "a", "outbox": [minimal()] }).await.unwrap();
    other.collection("stock").insert_one(doc! { "_id": "b", "outbox": [minimal()] }).await.unwrap();
    while commands.distinct() < 2 {
        running.page().await;
    }
    running.stop().await.unwrap();
    other.drop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn failing_commands_keep_the_position_until_sent() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    // With this setting, only pages advance the position.
    let settings =
        world.settings().with(|settings| settings.idle_save_interval = std::time::Duration::from_mins(10));
    let mut running = world.started(&commands, settings).await;
    let before = world.position().await;
    commands.away.store(true, Ordering::SeqCst);
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    running
        .wait("a refusal", |event| {
            matches!(event, RescueEvent::CommandsFailed { count: 1, .. }).then_some(())
        })
        .await;
    orders.insert_one(doc! { "_id": 2, "outbox": [minimal()] }).await.unwrap();
    while commands.refusals.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.position().await, before);
    commands.away.store(false, Ordering::SeqCst);
    running.page().await;
    running.page().await;
    assert_eq!(commands.firsts(), [1, 2].map(Bson::from));
    running.saved().await;
    assert_ne!(world.position().await, before);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_held_change_survives_its_expired_cursor() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let settings = world.settings().with(|settings| {
        // The delay is longer than even a busy machine takes to read the change.
        settings.delay = DELAY * 4;
        settings.page_size = 1;
        settings.cursor_idle_limit = std::time::Duration::from_millis(100);
    });
    let mut running = world.started(&commands, settings).await;
    let documents: Vec<_> = (0..5).map(|id| doc! { "_id": id, "outbox": [minimal()] }).collect();
    orders.insert_many(documents).await.unwrap();
    running
        .wait("the stream to be opened again", |event| {
            matches!(event, RescueEvent::Reopened { cause: ReopenCause::Held }).then_some(())
        })
        .await;
    while commands.distinct() < 5 {
        running.page().await;
    }
    let mut ids = commands.firsts();
    ids.sort_by_key(Bson::as_i32);
    assert_eq!(ids, [0, 1, 2, 3, 4].map(Bson::from));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn every_type_of_id_is_looked_up_and_named() {
    use mongodb::bson::{DateTime, Uuid, oid::ObjectId};
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let ids: Vec<Bson> = vec![
        "{\"$oid\": \"x\"} ☃".into(),
        ObjectId::new().into(),
        Uuid::new().into(),
        Bson::Int64(i64::MAX),
        Bson::Double(0.1),
        true.into(),
        Bson::Null,
        DateTime::from_millis(-5).into(),
        doc! { "tenant": 1, "list": [1] }.into(),
    ];
    for id in &ids {
        orders.insert_one(doc! { "_id": id, "outbox": [minimal()] }).await.unwrap();
    }
    while commands.distinct() < ids.len() {
        running.page().await;
    }
    assert!(ids.iter().all(|id| commands.ids().contains(id)));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn invalid_field_names_do_not_stop_the_stream() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": 1 }).await.unwrap();
    orders.insert_one(doc! { "_id": 2, "outbox": [dated(0, -3_600_000)] }).await.unwrap();
    let mut running = world.started(&commands, world.settings()).await;
    for (id, name) in [(1, "QQ"), (1, "outbox.QQ"), (2, "outbox.0.QQ")] {
        let update =
            doc! { "update": "orders", "updates": [{ "q": { "_id": id }, "u": { "$set": { name: 1 } } }] };
        let mut bytes = mongodb::bson::RawDocumentBuf::try_from(&update).unwrap().into_bytes();
        let at = bytes.windows(2).position(|two| two == b"QQ").unwrap();
        bytes[at..at + 2].copy_from_slice(b"\xff\xfe");
        let update = mongodb::bson::RawDocumentBuf::from_bytes(bytes).unwrap();
        let reply = world.db.run_raw_command(update).await.unwrap();
        assert_eq!(reply.get_i32("nModified").unwrap(), 1, "{name}");
    }
    orders.insert_one(doc! { "_id": "after", "outbox": [minimal()] }).await.unwrap();
    running
        .wait("the change behind them, without an error", |event| match event {
            RescueEvent::Reopened { cause } => panic!("{cause:?}"),
            RescueEvent::PageDone { queued: 1, .. } => Some(()),
            _ => None,
        })
        .await;
    assert_eq!(commands.ids(), [Bson::from("after")]);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_collection_renamed_to_a_match_is_swept() {
    let (world, commands) = (World::new().await, Recorder::new());
    let drafts = world.db.collection::<Document>("drafts");
    index(&drafts).await;
    drafts.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    let watch = ["orders", "stock"].map(|name| format!("{}.{name}", world.db.name()).parse().unwrap());
    // With this delay, the second full sweep of the start would run long after the test.
    let settings = world.settings().with(|settings| {
        settings.watch = watch.to_vec();
        settings.delay = DELAY * 3600;
    });
    let mut running = world.started(&commands, settings).await;
    let name = |collection: &str| format!("{}.{collection}", world.db.name());
    let rename = doc! { "renameCollection": name("drafts"), "to": name("orders") };
    world.client.database("admin").run_command(rename).await.unwrap();
    running.swept_something().await;
    assert_eq!(commands.ids(), [Bson::from(1)]);
    running.stop().await.unwrap();
    world.end().await;
}

/// The test does not wait for an hour. It checks the open cursors and the stored state while a change is
/// held.
#[tokio::test]
async fn a_long_delay_needs_no_cursor_across_restarts() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let settings = world.settings().with(|settings| {
        settings.delay = DELAY * 3600;
        settings.page_size = 10;
        settings.cursor_idle_limit = std::time::Duration::from_millis(100);
    });
    for _ in 0..2 {
        let commands = Recorder::new();
        let mut running = world.start(&commands, settings.clone()).await;
        if orders.find_one(doc! {}).await.unwrap().is_none() {
            running
                .wait("the stream to open", |event| matches!(event, RescueEvent::Opened { .. }).then_some(()))
                .await;
            world.streams_open(1).await;
            let documents: Vec<_> = (0..200).map(|id| doc! { "_id": id, "outbox": [dated(0, 0)] }).collect();
            orders.insert_many(documents).await.unwrap();
        }
        let held = |event: &RescueEvent| matches!(event, RescueEvent::Holding { .. }).then_some(());
        running.wait("a held change", held).await;
        // The server would eventually drop a cursor that is not read.
        world.streams_open(0).await;
        assert_eq!(running.status.snapshot().not_ready, [""; 0], "a held head is as it should be");
        assert_eq!(commands.ids(), []);
        running.stop().await.unwrap();
    }
    // With a short delay, the change is old enough at once, as if an hour had passed.
    let commands = Recorder::new();
    let settings = settings.with(|settings| settings.delay = DELAY);
    let mut running = world.start(&commands, settings).await;
    while commands.distinct() < 200 {
        running.page().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// The rescuer's current time is half an hour before the dates of the changes that it reads.
#[tokio::test]
async fn a_server_clock_set_back_delays_no_message() {
    let half_an_hour = std::time::Duration::from_mins(30);
    let (world, commands) = (World::on(set_back(half_an_hour).await).await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let saved = Instant::now();
    for id in 0..20 {
        orders.insert_one(doc! { "_id": id, "outbox": [minimal()] }).await.unwrap();
    }
    while commands.distinct() < 20 {
        running.page().await;
    }
    // Although the dates of the changes lie in the future, no change is processed before the delay has
    // passed.
    assert!(commands.taken()[0].1.duration_since(saved) >= DELAY);
    running.stop().await.unwrap();
    world.end().await;
}

/// A full page is read only after the time that is recorded for its documents. Otherwise a message could be
/// skipped if its write was still being committed when its document was found empty.
#[tokio::test]
async fn a_full_page_is_read_after_its_noted_time() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let mut options = ClientOptions::parse(mongodb_uri()).await.unwrap();
    let times: Arc<Mutex<Vec<Option<Timestamp>>>> = Arc::default();
    let into = times.clone();
    options.command_event_handler = Some(EventHandler::callback(move |event| {
        if let CommandEvent::Started(event) = event
            && event.command.get_document("filter").is_ok_and(|filter| filter.contains_key("_id"))
            && event.command.get_str("find") == Ok("orders")
        {
            let concern = event.command.get_document("readConcern");
            let time = concern.and_then(|concern| concern.get_timestamp("afterClusterTime")).ok();
            into.lock().unwrap().push(time);
        }
    }));
    let client = Client::with_options(options).unwrap();
    let before = world.server_time().await;
    let rescuer = Rescuer::new(client, Recorder::new(), world.settings()).unwrap();
    let (events, status) = (rescuer.subscribe(), rescuer.status());
    let stop = CancellationToken::new();
    let task = tokio::spawn(rescuer.run(stop.clone()));
    let mut running = Running { events, status, stop, task, begun: Instant::now() };
    let opened = |event: &RescueEvent| matches!(event, RescueEvent::Opened { .. }).then_some(());
    running.wait("the stream to open", opened).await;

    orders.insert_many((0..300).map(|id| doc! { "_id": id, "outbox": [minimal()] })).await.unwrap();
    while running.page().await.0 < 100 {}
    let latest = times.lock().unwrap().iter().flatten().max().copied();
    assert!(latest.is_some_and(|time| time > before), "{latest:?}");
    running.stop().await.unwrap();
    world.end().await;
}

/// Takes commands without ever answering.
#[derive(Default)]
struct Silent(tokio::sync::Notify);

#[async_trait::async_trait]
impl outbox_rescuer::Commands for Silent {
    async fn send(
        &self,
        _: Vec<document_outbox::command::ProcessDocumentMessages>,
    ) -> Vec<Result<(), document_outbox::SendFailure>> {
        self.0.notify_one();
        std::future::pending().await
    }

    async fn ready(&self) {}
}

#[tokio::test]
async fn a_broker_that_confirms_nothing_delays_no_stop() {
    let (world, commands) = (World::new().await, Arc::new(Silent::default()));
    let orders = world.indexed_orders().await;
    // `started` returns only after the first sweep, so it is the stream that sends the commands.
    let running = world.started(&commands, world.settings()).await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    commands.0.notified().await;
    running.stop().await.unwrap();
    let lease = world.leases().find_one(doc! {}).await.unwrap().unwrap();
    assert!(!lease.contains_key("until"), "{lease}");

    // The next start reads the change again.
    let commands = Recorder::new();
    let mut running = world.start(&commands, world.settings()).await;
    running.page().await;
    assert_eq!(commands.firsts(), [Bson::from(1)]);
    running.stop().await.unwrap();
    world.end().await;
}

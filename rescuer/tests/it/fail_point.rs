//! Tests faults that the server produces on request. The name of the client application limits each fault to
//! commands of the test's own rescuer.

use std::{sync::LazyLock, time::Duration};

use mongodb::bson::{Bson, Document, doc};
use outbox_rescuer::{ReopenCause, RescueEvent};
use tokio::sync::{Mutex, MutexGuard};

use crate::{process::Replicas, support::*};

/// The server can have only one fail point at a time. This lock separates the tests of one process; a test
/// group in `.config/nextest.toml` separates tests in different processes.
static ONE_AT_A_TIME: LazyLock<Mutex<()>> = LazyLock::new(Mutex::default);

async fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}

/// Requests a fault repeatedly until its effect shows, because the fault may first hit another command of the
/// rescuer than the command under test.
async fn provoke(
    world: &World,
    running: &mut Running,
    fail: Document,
    what: &str,
    shows: impl Fn(&RescueEvent) -> bool,
) {
    let again = async {
        loop {
            world.fail(fail.clone(), doc! { "times": 1 }).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    tokio::select! {
        () = again => {}
        () = running.wait(what, |event| shows(event).then_some(())) => {}
    }
    world.fail(fail, "off").await;
}

#[tokio::test]
async fn transient_errors_reopen_the_stream_without_loss() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    // After this error the driver treats the server as unavailable until its next heartbeat, which can be
    // 10 s later.
    let settings = world.settings().with(|settings| settings.ownership_lease = Duration::from_mins(1));
    let mut running = world.started(&commands, settings).await;
    // Error 91 (shutdown in progress), without the label that makes the driver resume by itself.
    let error = doc! { "failCommands": ["getMore"], "errorCode": 91, "errorLabels": [] };
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    provoke(&world, &mut running, error, "the stream to be opened again", |event| {
        matches!(event, RescueEvent::Reopened { cause: ReopenCause::Error(_) })
    })
    .await;
    orders.insert_one(doc! { "_id": 2, "outbox": [minimal()] }).await.unwrap();
    while commands.distinct() < 2 {
        running.page().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// P7: no message is lost if the position is lost.
#[tokio::test]
async fn a_lost_history_leads_to_a_full_sweep() {
    let _alone = alone().await;
    for code in [286, 280, 260, 136, 10334] {
        let (world, commands) = (World::new().await, Recorder::new());
        let orders = world.indexed_orders().await;
        // With this delay, the rescuer still holds the change when the position is lost, so the stream
        // never finds the message.
        let settings = world.settings().with(|settings| settings.delay = Duration::from_hours(1));
        let mut running = world.started(&commands, settings).await;
        orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
        let error = doc! { "failCommands": ["getMore"], "errorCode": code, "errorLabels": [] };
        provoke(
            &world,
            &mut running,
            error,
            &format!("a position lost by {code}"),
            |event| matches!(event, RescueEvent::PositionLost { code: Some(told), .. } if *told == code),
        )
        .await;
        while commands.distinct() < 1 {
            assert!(running.swept().await.0, "{code}: the sweep is full");
        }
        running.stop().await.unwrap();
        world.end().await;
    }
}

#[tokio::test]
async fn an_unreadable_page_is_retried_until_it_is_read() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    // The driver does not retry error 50 (time limit exceeded) by itself.
    let error = doc! { "failCommands": ["find"], "errorCode": 50 };
    world.fail(error.clone(), doc! { "times": 3 }).await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    running.page().await;
    assert_eq!(commands.firsts(), [Bson::from(1)]);
    world.fail(error, "off").await;
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn an_unsaved_position_is_saved_later_without_a_pause() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let error = doc! { "failCommands": ["update"], "errorCode": 50 };
    world.fail(error.clone(), doc! { "times": 2 }).await;
    for id in 1..=2 {
        orders.insert_one(doc! { "_id": id, "outbox": [minimal()] }).await.unwrap();
        running.page().await;
    }
    world.fail(error, "off").await;
    running.saved().await;
    assert_eq!(commands.firsts(), [1, 2].map(Bson::from));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_failed_sweep_ends_early_and_is_repeated() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
    let error = doc! { "failCommands": ["listCollections"], "errorCode": 50 };
    world.fail(error.clone(), doc! { "times": 2 }).await;
    let settings = world.settings().with(|settings| settings.sweep_interval = Duration::from_millis(50));
    let mut running = world.start(&commands, settings).await;
    while commands.distinct() < 1 {
        assert!(running.swept().await.0, "rounds are full until one is complete");
    }
    world.fail(error, "off").await;
    running.stop().await.unwrap();
    world.end().await;
}

/// If a stream is refused even at the server's own time, there is no position that could be lost.
#[tokio::test]
async fn a_stream_refused_at_the_present_is_retried() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    // Error 15 (overflow) doesn't reveal the cause of the failure.
    let error = doc! { "failCommands": ["aggregate"], "errorCode": 15 };
    world.fail(error.clone(), "alwaysOn").await;
    let mut running = world.start(&commands, world.settings()).await;
    until_some("the trouble to show", || {
        let status = running.status.snapshot();
        status.not_ready.iter().any(|why| why.contains("refuses to open the change stream")).then_some(())
    })
    .await;
    world.fail(error, "off").await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    running
        .wait("a page", |event| match event {
            RescueEvent::PositionLost { .. } => panic!("{event:?}"),
            RescueEvent::PageDone { .. } => Some(()),
            _ => None,
        })
        .await;
    assert_eq!(commands.firsts(), [Bson::from(1)]);
    running.stop().await.unwrap();
    world.end().await;
}

/// Simulates an index that is still being built: MongoDB lists the index, but no query can use it.
#[tokio::test]
async fn a_refused_index_leads_to_an_immediate_scan() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
    let error = doc! {
        "failCommands": ["find"], "errorCode": 2, "namespace": format!("{}.orders", world.db.name()),
    };
    world.fail(error.clone(), doc! { "times": 1 }).await;
    let settings = world.settings().with(|settings| settings.delay = Duration::from_hours(1));
    let mut running = world.start(&commands, settings).await;
    let mut missed = false;
    let cut_short = running
        .wait("a sweep", |event| match event {
            RescueEvent::IndexMissing { .. } => {
                missed = true;
                None
            }
            RescueEvent::SweepDone { cut_short, .. } => Some(*cut_short),
            _ => None,
        })
        .await;
    world.fail(error, "off").await;
    assert!(missed && !cut_short, "missed: {missed}, cut short: {cut_short}");
    assert_eq!(commands.ids(), [Bson::from("minimal")]);
    running.stop().await.unwrap();
    world.end().await;
}

/// After one collection fails, only that collection's part of a full round remains to be done.
#[tokio::test]
async fn an_unreadable_collection_causes_no_full_sweep_of_others() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let stock = world.db.collection::<Document>("stock");
    index(&stock).await;
    orders.insert_one(doc! { "_id": "order", "outbox": [minimal()] }).await.unwrap();
    stock.insert_one(doc! { "_id": "item", "outbox": [minimal()] }).await.unwrap();
    let error = doc! {
        "failCommands": ["find"], "errorCode": 50, "namespace": format!("{}.orders", world.db.name()),
    };
    world.fail(error.clone(), "alwaysOn").await;
    let settings = world.settings().with(|settings| {
        settings.sweep_interval = Duration::from_millis(50);
        settings.delay = Duration::from_hours(1);
    });
    let mut running = world.start(&commands, settings).await;
    let mut examined = Vec::new();
    for _ in 0..3 {
        let round = running.wait("a sweep", |event| match event {
            RescueEvent::SweepDone { examined, full, .. } => Some((*examined, *full)),
            _ => None,
        });
        examined.push(round.await);
    }
    world.fail(error, "off").await;
    assert_eq!(examined, [(1, true), (0, true), (0, true)]);
    assert_eq!(commands.ids(), [Bson::from("item")]);
    running.swept_something().await;
    assert_eq!(commands.ids(), ["item", "order"].map(Bson::from));
    assert!(!running.swept().await.0);
    running.stop().await.unwrap();
    world.end().await;
}

/// Repeated losses of the position without progress in between are handled at growing intervals.
#[tokio::test]
async fn a_position_lost_repeatedly_restarts_with_growing_pauses() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let mut running = world.started(&commands, world.settings()).await;
    // Opening the stream succeeds, so the failure is not a refusal.
    let error = doc! { "failCommands": ["getMore"], "errorCode": 286, "errorLabels": [] };
    let begun = std::time::Instant::now();
    world.fail(error.clone(), "alwaysOn").await;
    for _ in 0..5 {
        let lost = |event: &RescueEvent| matches!(event, RescueEvent::PositionLost { .. }).then_some(());
        running.wait("a loss", lost).await;
    }
    // The pauses last at least 0.1, 0.2, 0.4, 0.8 and 1.6 s, so the test would take less time if the pauses
    // did not grow.
    let took = begun.elapsed();
    world.fail(error, "off").await;
    assert!(took >= Duration::from_millis(3100), "{took:?}");
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_long_query_does_not_delay_a_stop() {
    let _alone = alone().await;
    for indexed in [true, false] {
        let (world, commands) = (World::new().await, Recorder::new());
        world.orders().insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
        if indexed {
            world.indexed_orders().await;
        }
        let slow = doc! {
            "failCommands": ["find"], "blockConnection": true, "blockTimeMS": 600_000,
            "namespace": format!("{}.orders", world.db.name()),
        };
        let before = world.fail(slow.clone(), "alwaysOn").await;
        let running = world.start(&commands, world.settings()).await;
        world.has_met(before).await;
        // The stop ends long before the query would end.
        running.stop().await.unwrap();
        world.end_queries().await;
        world.fail(slow, "off").await;
        assert_eq!(commands.ids(), [], "the query was under way");
        world.end().await;
    }
}

/// P5: a failing collection does not affect other collections.
#[tokio::test]
async fn a_collection_that_cannot_be_read_stops_no_other() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let stock = world.db.collection::<Document>("stock");
    index(&stock).await;
    let settings = world.settings().with(|settings| settings.sweep_interval = Duration::from_millis(200));
    let mut running = world.started(&commands, settings).await;
    // Error 13: the user lacks the privilege.
    let error = doc! {
        "failCommands": ["find"], "errorCode": 13, "namespace": format!("{}.orders", world.db.name()),
    };
    world.fail(error.clone(), "alwaysOn").await;
    orders.insert_one(doc! { "_id": "order", "outbox": [minimal()] }).await.unwrap();
    stock.insert_one(doc! { "_id": "item", "outbox": [minimal()] }).await.unwrap();
    while commands.distinct() < 1 {
        running.page().await;
    }
    assert_eq!(commands.firsts(), [Bson::from("item")]);
    let not_ready = running.status.snapshot().not_ready.join("; ");
    assert!(not_ready.contains(&format!("{}.orders", world.db.name())), "{not_ready}");

    // Messages whose changes the stream has skipped are found once the collection can be read.
    world.fail(error, "off").await;
    while commands.distinct() < 2 {
        running.swept().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_stream_that_breaks_after_opening_is_unready() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let settings = world.settings().with(|settings| settings.ownership_lease = Duration::from_mins(1));
    let mut running = world.started(&commands, settings).await;
    let error = doc! { "failCommands": ["getMore"], "errorCode": 50, "errorLabels": [] };
    world.fail(error.clone(), "alwaysOn").await;
    for _ in 0..2 {
        let reopened = |event: &RescueEvent| matches!(event, RescueEvent::Reopened { .. }).then_some(());
        running.wait("the stream to be opened again", reopened).await;
    }
    let not_ready = running.status.snapshot().not_ready.join("; ");
    world.fail(error, "off").await;
    assert!(not_ready.contains("could not read the change stream"), "{not_ready}");
    until_some("it to be ready again", || running.status.snapshot().not_ready.is_empty().then_some(())).await;
    running.stop().await.unwrap();
    world.end().await;
}

/// Stops the binary while MongoDB doesn't answer a request of the binary.
#[tokio::test]
async fn sigterm_ends_whatever_is_under_way() {
    let _alone = alone().await;
    for commands in [&["getMore"][..], &["aggregate", "find", "listCollections", "listIndexes"]] {
        let replicas = Replicas::new("10m").await;
        let world = &replicas.world;
        let slow = doc! { "failCommands": commands, "blockConnection": true, "blockTimeMS": 6000 };
        let mut process = replicas.start();
        // MongoDB stops answering while the rescuer reads, or before it has read its position and opened its
        // stream.
        let until = if commands == ["getMore"] { "the change stream is open" } else { "started" };
        process.logs(until, 0).await;
        let met = world.fail(slow.clone(), "alwaysOn").await;
        world.has_met(met).await;
        process.signal("-TERM");
        assert!(process.ended().await, "{commands:?}: cut off");
        world.fail(slow, "off").await;
        let lease = world.leases().find_one(doc! {}).await.unwrap();
        assert!(
            lease.as_ref().is_none_or(|lease| !lease.contains_key("until")),
            "{commands:?}: the lease is kept: {lease:?}"
        );
        replicas.end().await;
    }
}

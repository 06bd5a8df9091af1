//! Faults made by the server on request. Only commands of the test's own rescuer are hit, told by its application name.

use std::{sync::LazyLock, time::Duration};

use mongodb::bson::{Bson, Document, doc};
use outbox_rescuer::{ReopenCause, RescueEvent, Settings};
use tokio::sync::{Mutex, MutexGuard};

use crate::support::*;

/// The server has one such fault at a time.
static ONE_AT_A_TIME: LazyLock<Mutex<()>> = LazyLock::new(Mutex::default);

async fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}

/// Asks for a fault until its effect shows, because another program's tests may take the server's one fault away.
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
async fn errors_that_pass_have_the_stream_opened_again_and_lose_nothing() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    // 91 (shutdown in progress) without the label that has the driver resume by itself.
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

/// P7: a lost position loses nothing.
#[tokio::test]
async fn history_lost_and_its_like_are_answered_with_a_sweep_that_finds_everything() {
    let _alone = alone().await;
    for code in [286, 280, 260, 136, 10334] {
        let (world, commands) = (World::new().await, Recorder::new());
        let orders = world.indexed_orders().await;
        // So long that the stream cannot be the one who finds it, and that the loss comes during a hold.
        let settings = Settings { delay: Duration::from_secs(3600), ..world.settings() };
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
async fn a_page_whose_documents_cannot_be_looked_up_is_tried_until_they_can() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    // 50 (out of time) is none of those that the driver tries again by itself.
    let error = doc! { "failCommands": ["find"], "errorCode": 50 };
    world.fail(error.clone(), doc! { "times": 3 }).await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    running.page().await;
    assert_eq!(commands.ids(), [Bson::from(1)]);
    world.fail(error, "off").await;
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_position_that_cannot_be_saved_stops_nothing_and_is_saved_later() {
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
    assert_eq!(commands.ids(), [1, 2].map(Bson::from));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_sweep_that_fails_is_cut_short_and_made_up_for() {
    let _alone = alone().await;
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
    let error = doc! { "failCommands": ["listCollections"], "errorCode": 50 };
    world.fail(error.clone(), doc! { "times": 2 }).await;
    let settings = Settings { sweep_interval: Duration::from_millis(50), ..world.settings() };
    let mut running = world.start(&commands, settings).await;
    while commands.distinct() < 1 {
        assert!(running.swept().await.0, "full until one goes through");
    }
    world.fail(error, "off").await;
    running.stop().await.unwrap();
    world.end().await;
}

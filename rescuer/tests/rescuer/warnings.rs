//! What works, but not well, is said with its numbers.

use std::time::Duration;

use mongodb::bson::doc;
use outbox_rescuer::{RescueEvent, Settings, Warning};

use crate::support::*;

async fn warned(running: &mut Running) -> Warning {
    running
        .wait("a warning", |event| match event {
            RescueEvent::Warning { warning, .. } => Some(warning.clone()),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn an_inline_claim_that_outlasts_the_delay_is_warned_of() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let mut claimed = dated(0, -60_000);
    claimed.insert("claimed_by", "application/1");
    orders.insert_one(doc! { "_id": 1, "outbox": [claimed] }).await.unwrap();
    let lease = Duration::from_secs(60);
    assert_eq!(warned(&mut running).await, Warning::InlineLeaseLong { lease, delay: DELAY });
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_share_of_documents_that_inline_dispatch_did_not_reach_in_time_is_warned_of() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let delay = DELAY * 5;
    let mut running = world.started(&commands, Settings { delay, ..world.settings() }).await;
    orders.insert_many((0..220).map(|id| doc! { "_id": id, "outbox": [dated(0, 0)] })).await.unwrap();
    // Delivered, but for some.
    let delivered = doc! { "_id": { "$gte": 30 } };
    orders.update_many(delivered, doc! { "$set": { "outbox": [] } }).await.unwrap();
    match warned(&mut running).await {
        Warning::InlineSlow { undelivered, of, delay: told } => {
            assert!(undelivered <= 30 && of >= 200 && told == delay, "{undelivered} of {of}");
        }
        other => panic!("{other}"),
    }
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_grace_that_is_longer_than_the_lease_is_warned_of() {
    let (world, commands) = (World::new().await, Recorder::new());
    let grace = Duration::from_secs(25);
    let settings = Settings { shutdown_grace: Some(grace), ..world.settings() };
    let lease = settings.lease;
    let mut running = world.start(&commands, settings).await;
    assert_eq!(warned(&mut running).await, Warning::GraceLong { grace, lease });
    running.stop().await.unwrap();
    world.end().await;
}

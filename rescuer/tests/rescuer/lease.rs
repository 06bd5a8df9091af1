//! Several rescuers of one name: one owns the stream, the others stand by. Here within this process; see `process.rs`.

use std::time::Duration;

use mongodb::bson::{Bson, DateTime, doc};
use outbox_rescuer::Settings;

use crate::support::*;

/// So long that nobody can take the stream over but by the lease being given back.
const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_second_rescuer_stands_by_until_the_first_gives_the_stream_back() {
    let (world, first_commands, second_commands) = (World::new().await, Recorder::new(), Recorder::new());
    let orders = world.indexed_orders().await;
    let settings = Settings { lease: LONG, ..world.settings() };
    let mut first = world.start(&first_commands, settings.clone()).await;
    let epoch = first.owned().await;
    let mut second = world.start(&second_commands, settings).await;
    let lease = world.leases().find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(second.standing_by().await, lease.get_str("owner").unwrap());
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    first.page().await;
    first.stop().await.unwrap();
    assert_eq!(second.owned().await, epoch + 1);
    assert_eq!(second_commands.ids(), [], "nothing was queued by who stood by");
    orders.insert_one(doc! { "_id": 2, "outbox": [minimal()] }).await.unwrap();
    while !second_commands.ids().contains(&2.into()) {
        second.page().await;
    }
    assert_eq!(first_commands.distinct(), 1);
    assert_eq!(world.position().await.get_i64("epoch").unwrap(), epoch + 1);
    second.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn an_owner_whose_lease_is_taken_stands_by_and_takes_the_stream_up_again_later() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let epoch = world.position().await.get_i64("epoch").unwrap();
    let until = |millis: i64| DateTime::from_millis(DateTime::now().timestamp_millis() + millis);
    let other = doc! { "$set": { "owner": "other/1", "until": until(600_000) }, "$inc": { "epoch": 1 } };
    world.leases().update_one(doc! {}, other).await.unwrap();
    assert!(running.stepped_back().await.contains("taken its lease"));
    assert_eq!(running.standing_by().await, "other/1");
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    world.leases().update_one(doc! {}, doc! { "$set": { "until": until(-1) } }).await.unwrap();
    assert_eq!(running.owned().await, epoch + 2);
    while commands.distinct() < 1 {
        running.page().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// The last fence: an owner who believes in its lease writes over nothing of a later one.
#[tokio::test]
async fn a_position_of_a_higher_epoch_is_never_written_over() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let settings = Settings { lease: LONG, idle_save_interval: LONG, ..world.settings() };
    let mut running = world.started(&commands, settings).await;
    let epoch = world.position().await.get_i64("epoch").unwrap();
    let raised = doc! { "$set": { "epoch": epoch + 7, "owner": "other/1" }, "$unset": { "token": "" } };
    world.positions().update_one(doc! {}, raised).await.unwrap();
    let theirs = world.position().await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    assert!(running.stepped_back().await.contains("saved a position"));
    assert_eq!(world.position().await, theirs);
    // Nobody else is there: it goes on, above that epoch.
    assert_eq!(running.owned().await, epoch + 8);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn whatever_an_operator_deletes_the_epoch_grows_and_the_rescuer_goes_on() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let epoch = world.position().await.get_i64("epoch").unwrap();
    world.leases().drop().await.unwrap();
    running.stepped_back().await;
    assert_eq!(running.owned().await, epoch + 1);
    running.saved().await;
    world.positions().delete_many(doc! {}).await.unwrap();
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    running.stepped_back().await;
    assert_eq!(running.owned().await, epoch + 2);
    while commands.distinct() < 1 {
        running.swept().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_lease_that_makes_no_sense_is_taken() {
    let world = World::new().await;
    for odd in [
        doc! { "owner": "other/1", "epoch": "seven", "until": "tomorrow" },
        doc! { "owner": Bson::Null, "epoch": Bson::Null, "until": Bson::Null },
        doc! { "owner": "other/1", "epoch": 3.5, "until": DateTime::from_millis(0) },
        doc! { "owner": "$until", "epoch": i64::MIN, "until": DateTime::from_millis(0) },
    ] {
        let mut lease = doc! { "_id": { "stream": "default" } };
        lease.extend(odd.clone());
        let id = doc! { "_id": { "stream": "default" } };
        world.leases().replace_one(id, lease).upsert(true).await.unwrap();
        let mut running = world.start(&Recorder::new(), world.settings()).await;
        assert!(running.owned().await >= 1, "{odd}");
        running.stop().await.unwrap();
    }
    world.end().await;
}

//! Several rescuers with the same name: one owns the stream, and the others stand by. In these tests, all
//! rescuers run in the process of the test; `process.rs` tests separate processes.

use std::{sync::atomic::Ordering, time::Duration};

use mongodb::bson::{Bson, DateTime, Document, doc};
use outbox_rescuer::{RescueEvent, Settings};

use crate::support::*;

/// A lease so long that another rescuer can only take over the stream after a release.
const LONG: Duration = Duration::from_mins(10);

/// Settings with a lease so short that a test can wait for its end.
fn short(world: &World) -> Settings {
    world.settings().with(|settings| settings.ownership_lease = Duration::from_secs(2))
}

#[tokio::test]
async fn a_second_rescuer_waits_until_the_first_yields() {
    let (world, first_commands, second_commands) = (World::new().await, Recorder::new(), Recorder::new());
    let orders = world.indexed_orders().await;
    let settings = world.settings().with(|settings| settings.ownership_lease = LONG);
    let mut first = world.start(&first_commands, settings.clone()).await;
    let epoch = first.owned().await;
    let mut second = world.start(&second_commands, settings).await;
    let lease = world.leases().find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(second.standing_by().await, lease.get_str("owner").unwrap());
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    first.page().await;
    first.stop().await.unwrap();
    assert_eq!(second.owned().await, epoch + 1);
    assert_eq!(second_commands.ids(), [], "the standby queued no document");
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
async fn an_owner_that_lost_its_lease_regains_it_later() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, short(&world)).await;
    let epoch = world.position().await.get_i64("epoch").unwrap();
    let until = |millis: i64| DateTime::from_millis(DateTime::now().timestamp_millis() + millis);
    let other = doc! { "$set": { "owner": "other/1", "until": until(600_000) }, "$inc": { "epoch": 1 } };
    world.leases().update_one(doc! {}, other).await.unwrap();
    assert!(running.stepped_back().await.contains("taken the lease"));
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

/// The last protection: an owner that still considers its lease valid can't overwrite the position of a later
/// owner.
#[tokio::test]
async fn a_position_of_a_higher_epoch_is_kept() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let settings = world.settings().with(|settings| {
        settings.ownership_lease = LONG;
        settings.idle_save_interval = LONG;
    });
    let mut running = world.started(&commands, settings).await;
    let epoch = world.position().await.get_i64("epoch").unwrap();
    let raised = doc! { "$set": { "epoch": epoch + 7, "owner": "other/1" }, "$unset": { "token": "" } };
    world.positions().update_one(doc! {}, raised).await.unwrap();
    let theirs = world.position().await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    assert!(running.stepped_back().await.contains("saved a position"));
    assert_eq!(world.position().await, theirs);
    // There is no other rescuer, so this rescuer takes the lease again, with a higher epoch.
    assert_eq!(running.owned().await, epoch + 8);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn epochs_grow_even_when_an_operator_deletes_state() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, short(&world)).await;
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
        let mut running = world.start(&Recorder::new(), short(&world)).await;
        assert!(running.owned().await >= 1, "{odd}");
        running.stop().await.unwrap();
    }
    world.end().await;
}

fn in_millis(millis: i64) -> DateTime {
    DateTime::from_millis(DateTime::now().timestamp_millis() + millis)
}

/// Writes the lease as another rescuer leaves it.
async fn leave_lease(world: &World, fields: Document) {
    let mut lease =
        doc! { "_id": { "stream": "default" }, "kind": "stream", "owner": "other/1", "epoch": 3_i64 };
    lease.extend(fields);
    world.leases().insert_one(lease).await.unwrap();
}

async fn lease(world: &World) -> Document {
    world.leases().find_one(doc! {}).await.unwrap().unwrap()
}

/// P5: a process without a broker must not block the rescue.
#[tokio::test]
async fn an_owner_without_a_broker_yields_to_another() {
    let (world, cut_off, connected) = (World::new().await, Recorder::new(), Recorder::new());
    let orders = world.indexed_orders().await;
    cut_off.away.store(true, Ordering::SeqCst);
    let mut first = world.start(&cut_off, short(&world)).await;
    let epoch = first.owned().await;
    let mut second = world.start(&connected, short(&world)).await;
    assert!(first.stepped_back().await.contains("can't send commands"));
    assert_eq!(second.owned().await, epoch + 1);

    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    second.page().await;
    assert_eq!(connected.firsts(), [Bson::from(1)]);
    assert_eq!(first.standing_by().await, lease(&world).await.get_str("owner").unwrap());
    first.stop().await.unwrap();
    second.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn an_owner_whose_broker_goes_away_yields_at_once() {
    let (world, first_commands, second_commands) = (World::new().await, Recorder::new(), Recorder::new());
    let settings = short(&world);
    let mut first = world.start(&first_commands, settings.clone()).await;
    let epoch = first.owned().await;
    let mut second = world.start(&second_commands, settings).await;
    second.standing_by().await;
    until_lease(
        &world,
        "the standby to announce that it can send",
        doc! { "able.owner": { "$exists": true } },
    )
    .await;
    first_commands.away.store(true, Ordering::SeqCst);
    assert_eq!(second.owned().await, epoch + 1);

    // The stream doesn't change hands again as long as the owner can send.
    first_commands.away.store(false, Ordering::SeqCst);
    until_lease(
        &world,
        "the other rescuer to be able to send again",
        doc! { "able.owner": { "$exists": true } },
    )
    .await;
    let until = *lease(&world).await.get_datetime("until").unwrap();
    let renewed = doc! { "until": { "$gt": until }, "epoch": epoch + 1 };
    until_lease(&world, "the lease to be renewed", renewed).await;
    first.stop().await.unwrap();
    second.stop().await.unwrap();
    world.end().await;
}

async fn until_lease(world: &World, what: &str, wanted: Document) {
    let begun = std::time::Instant::now();
    while world.leases().find_one(wanted.clone()).await.unwrap().is_none() {
        let lease = world.leases().find_one(doc! {}).await.unwrap();
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}: {lease:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The lease is free, and the only rescuer that reads the lease can't send commands.
#[tokio::test]
async fn a_free_lease_is_left_to_an_able_standby() {
    let (world, commands) = (World::new().await, Recorder::new());
    commands.away.store(true, Ordering::SeqCst);
    leave_lease(&world, doc! { "able": { "owner": "other/2", "until": in_millis(3_600_000) } }).await;
    let mut running = world.start(&commands, short(&world)).await;
    let first = running.wait("a decision", |event| match event {
        RescueEvent::StandingBy { .. } => Some(true),
        RescueEvent::Owned { .. } => Some(false),
        _ => None,
    });
    assert!(first.await, "it took the lease, although a standby can send");
    // The rescuer that the field `able` names has died. Otherwise that rescuer would announce itself again,
    // and this rescuer would not take the lease.
    assert_eq!(running.owned().await, 4);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn the_owner_stays_when_no_rescuer_has_a_broker() {
    let (world, first_commands, second_commands) = (World::new().await, Recorder::new(), Recorder::new());
    let orders = world.indexed_orders().await;
    first_commands.away.store(true, Ordering::SeqCst);
    second_commands.away.store(true, Ordering::SeqCst);
    let mut first = world.start(&first_commands, short(&world)).await;
    let epoch = first.owned().await;
    let mut second = world.start(&second_commands, short(&world)).await;
    second.standing_by().await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();

    let since = *lease(&world).await.get_datetime("until").unwrap();
    let three_leases = DateTime::from_millis(since.timestamp_millis() + 3000);
    let renewed = doc! { "epoch": epoch, "until": { "$gt": three_leases } };
    until_lease(&world, "the owner to keep the lease", renewed).await;
    assert_eq!(first_commands.distinct() + second_commands.distinct(), 0);

    // The broker is available again, but only to the second rescuer.
    second_commands.away.store(false, Ordering::SeqCst);
    assert_eq!(second.owned().await, epoch + 1);
    while second_commands.distinct() < 1 {
        second.page().await;
    }
    first.stop().await.unwrap();
    second.stop().await.unwrap();
    world.end().await;
}

/// The broker is available to one rescuer for one lease duration, and then to the other rescuer.
#[tokio::test]
async fn each_term_lasts_a_lease_under_a_flapping_broker() {
    const LEASE: i64 = 1000;
    let lasting = |world: &World| {
        world.settings().with(|settings| settings.ownership_lease = Duration::from_millis(LEASE as u64))
    };
    let (world, first_commands, second_commands) = (World::new().await, Recorder::new(), Recorder::new());
    let orders = world.indexed_orders().await;
    let mut first = world.start(&first_commands, lasting(&world)).await;
    first.owned().await;
    let second = world.start(&second_commands, lasting(&world)).await;
    let mut terms: Vec<(i64, i64)> = Vec::new();
    let mut round = 0;
    while terms.len() < 6 {
        let first_is_away = round / 10 % 2 == 0;
        first_commands.away.store(first_is_away, Ordering::SeqCst);
        second_commands.away.store(!first_is_away, Ordering::SeqCst);
        orders.insert_one(doc! { "_id": round, "outbox": [minimal()] }).await.unwrap();
        let lease = lease(&world).await;
        let since = lease.get_datetime("since").unwrap().timestamp_millis();
        let term = (lease.get_i64("epoch").unwrap(), since);
        if terms.last() != Some(&term) {
            terms.push(term);
        }
        round += 1;
        assert!(round < 300, "it changes hands: {terms:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for pair in terms.windows(2) {
        let took = pair[1].1 - pair[0].1;
        assert!(took >= LEASE - 10, "a term of {took} ms: {terms:?}");
    }

    first_commands.away.store(false, Ordering::SeqCst);
    second_commands.away.store(false, Ordering::SeqCst);
    let all = || {
        let mut ids = first_commands.firsts();
        ids.extend(second_commands.firsts());
        (0..round).all(|id| ids.contains(&id.into())).then_some(())
    };
    until_some("every document to have its command", all).await;
    first.stop().await.unwrap();
    second.stop().await.unwrap();
    world.end().await;
}

/// An owner died and left this lease, and then the server's clock was set back by half an hour.
#[tokio::test]
async fn a_lease_dated_far_ahead_does_not_block_long() {
    for term in [doc! {}, doc! { "term": { "epoch": 3_i64, "lasts": 1000_i64 } }] {
        let (world, commands) = (World::new().await, Recorder::new());
        let mut fields = doc! { "since": in_millis(1_799_000), "until": in_millis(1_800_000) };
        fields.extend(term);
        leave_lease(&world, fields).await;
        let mut running = world.start(&commands, short(&world)).await;
        assert_eq!(running.standing_by().await, "other/1");
        assert_eq!(running.owned().await, 4);
        running.stop().await.unwrap();
        world.end().await;
    }
}

#[tokio::test]
async fn an_owner_with_a_fast_clock_keeps_its_lease() {
    let (world, commands) = (World::new().await, Recorder::new());
    leave_lease(&world, doc! { "until": in_millis(1_800_000) }).await;
    // The lease is so long that each renewal is in time even on a busy machine.
    let settings = world.settings().with(|settings| settings.ownership_lease = Duration::from_secs(4));
    let mut running = world.start(&commands, settings).await;
    running.standing_by().await;
    // Waits for two lease durations.
    for step in 1..=80 {
        let renewed = doc! { "$set": { "until": in_millis(1_800_000 + step) } };
        let written = world.leases().update_one(doc! { "owner": "other/1" }, renewed).await.unwrap();
        assert_eq!(written.matched_count, 1, "it took the lease of a living owner");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(running.owned().await, 4, "the lease is free once it is no longer renewed");
    running.stop().await.unwrap();
    world.end().await;
}

/// A released lease has no date, because a clock that is set back could prolong a lease with a date. Older
/// rescuers also treat a lease without a date as free.
#[tokio::test]
async fn a_released_lease_has_no_date() {
    let (world, commands) = (World::new().await, Recorder::new());
    let running =
        world.started(&commands, world.settings().with(|settings| settings.ownership_lease = LONG)).await;
    assert_eq!(lease(&world).await.get_document("term").unwrap().get_i64("lasts").unwrap(), 600_000);
    running.stop().await.unwrap();
    let lease = lease(&world).await;
    assert!(!lease.contains_key("until"), "{lease}");
    assert_eq!(lease.get_i64("epoch").unwrap(), 1);
    world.end().await;
}

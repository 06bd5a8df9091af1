//! Tests the position after restarts, losses and forgeries.

use std::time::Duration;

use mongodb::bson::{Bson, DateTime, Document, Timestamp, doc};
use outbox_rescuer::{OnHistoryLost, RescueEvent, RescuerError, Settings, StartedFrom};

use crate::support::*;

async fn opened(running: &mut Running) -> StartedFrom {
    running
        .wait("the stream to open", |event| match event {
            RescueEvent::Opened { from } => Some(*from),
            _ => None,
        })
        .await
}

/// Runs a rescuer once, so that there is a position with a token, and stops it.
async fn with_position(world: &World, settings: Settings) {
    let commands = Recorder::new();
    let mut running = world.started(&commands, settings).await;
    world.orders().insert_one(doc! { "_id": "first", "outbox": [minimal()] }).await.unwrap();
    running.page().await;
    running.saved().await;
    running.stop().await.unwrap();
    world.orders().delete_one(doc! { "_id": "first" }).await.unwrap();
}

#[tokio::test]
async fn the_first_start_saves_its_time_before_reading() {
    let (world, commands) = (World::new().await, Recorder::new());
    let settings = world.settings().with(|settings| settings.idle_save_interval = Duration::from_mins(10));
    let mut running = world.start(&commands, settings).await;
    assert_eq!(opened(&mut running).await, StartedFrom::Now);
    let position = world.position().await;
    assert!(position.get_timestamp("cluster_time").is_ok());
    assert!(!position.contains_key("token"));
    assert_eq!(position.get_i64("epoch").ok(), Some(1));
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn messages_saved_during_a_downtime_are_queued_afterwards() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    with_position(&world, world.settings()).await;
    orders.insert_one(doc! { "_id": "while down", "outbox": [dated(0, 0)] }).await.unwrap();
    let commands = Recorder::new();
    let mut running = world.start(&commands, world.settings()).await;
    assert_eq!(opened(&mut running).await, StartedFrom::Position);
    running.page().await;
    assert_eq!(commands.distinct(), 1);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_held_change_is_reread_after_a_kill() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    // The delay is so long that the rescuer is killed before the delay is over.
    let delay = Duration::from_secs(5);
    let settings = world.settings().with(|settings| {
        settings.delay = delay;
        settings.ownership_lease = Duration::from_secs(2);
    });
    let mut running = world.started(&commands, settings.clone()).await;
    let saved = std::time::Instant::now();
    // The first entry is scheduled far ahead, so that no sweep can find it; the stream has to find the second
    // entry.
    orders.insert_one(doc! { "_id": 1, "outbox": [dated(0, -9_000_000)] }).await.unwrap();
    orders.update_one(doc! { "_id": 1 }, push(dated(0, 0))).await.unwrap();
    running.wait("a held change", |event| matches!(event, RescueEvent::Holding { .. }).then_some(())).await;
    running.kill().await;
    assert_eq!(commands.ids(), []);
    let mut running = world.start(&commands, settings).await;
    assert_eq!(opened(&mut running).await, StartedFrom::Position);
    running.page().await;
    assert_eq!(commands.ids()[..], [Bson::from(1)]);
    assert!(commands.taken()[0].1.duration_since(saved) >= delay);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_rescuer_killed_midway_queues_everything_after_restart() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let settings = world.settings().with(|settings| {
        settings.page_size = 50;
        settings.busy_save_interval = Duration::ZERO;
        settings.ownership_lease = Duration::from_secs(2);
    });
    let mut running = world.started(&commands, settings.clone()).await;
    let documents: Vec<_> = (0..300).map(|id| doc! { "_id": id, "outbox": [dated(0, 0)] }).collect();
    orders.insert_many(documents).await.unwrap();
    running.page().await;
    running.page().await;
    running.kill().await;
    let before = commands.ids().len();
    assert!(before < 300, "{before} were queued before it was killed");
    let again = Recorder::new();
    let mut running = world.start(&again, settings).await;
    let mut all: Vec<Bson> = Vec::new();
    while all.len() < 300 {
        running.page().await;
        all = commands.ids();
        all.extend(again.taken().into_iter().map(|(command, _)| command.document.id().clone()));
        all.sort_by_key(Bson::as_i32);
        all.dedup();
    }
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn stopped_cleanly_the_rescuer_repeats_nothing() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let settings = world.settings().with(|settings| settings.busy_save_interval = Duration::from_mins(10));
    let mut running = world.started(&commands, settings.clone()).await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    running.page().await;
    running.stop().await.unwrap();
    let token = world.position().await.get_document("token").unwrap().clone();
    orders.delete_one(doc! { "_id": 1 }).await.unwrap();
    orders.insert_one(doc! { "_id": 2, "outbox": [minimal()] }).await.unwrap();
    let mut running = world.start(&commands, settings).await;
    assert_eq!(running.page().await.0, 1, "only changes after the stop are read; the position was {token}");
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn the_position_of_an_idle_stream_moves_on() {
    let (world, commands) = (World::new().await, Recorder::new());
    let mut running = world.started(&commands, world.settings()).await;
    let elsewhere = world.state.collection::<Document>("noise");
    running.saved().await;
    let before = world.position().await;
    elsewhere.insert_one(doc! {}).await.unwrap();
    running.saved().await;
    running.saved().await;
    let after = world.position().await;
    assert_ne!(after.get("token"), before.get("token"));
    assert!(after.get_timestamp("cluster_time").unwrap() > before.get_timestamp("cluster_time").unwrap());
    running.stop().await.unwrap();
    world.end().await;
}

/// P7: no message is lost if the position is lost.
#[tokio::test]
async fn an_unusable_position_is_reported_and_loses_no_message() {
    // The token has the shape of a real token: the type byte of a timestamp, and a time, which is in 2017.
    let too_old = "82596878000000000129295A1004";
    for (case, change) in [
        ("garbage", doc! { "$set": { "token": { "_data": "garbage" } } }),
        ("no token at all", doc! { "$set": { "token": "yesterday" } }),
        ("a token with no data", doc! { "$set": { "token": {} } }),
        ("a token that breaks off", doc! { "$set": { "token": { "_data": too_old } } }),
        ("nothing", doc! { "$unset": { "token": "", "cluster_time": "" } }),
        ("a time of another type", doc! { "$set": { "cluster_time": "1" }, "$unset": { "token": "" } }),
        ("other patterns, no time", doc! { "$set": { "pipeline": "0" }, "$unset": { "cluster_time": "" } }),
    ] {
        let world = World::new().await;
        let orders = world.indexed_orders().await;
        with_position(&world, world.settings()).await;
        world.positions().update_one(doc! {}, change).await.unwrap();
        orders.insert_one(doc! { "_id": "minimal", "outbox": [minimal()] }).await.unwrap();
        orders.insert_one(doc! { "_id": "dated", "outbox": [dated(60_000, 60_000)] }).await.unwrap();
        let commands = Recorder::new();
        let mut running = world.start(&commands, world.settings()).await;
        let lost = |event: &RescueEvent| matches!(event, RescueEvent::PositionLost { .. }).then_some(());
        running.wait(&format!("a lost position: {case}"), lost).await;
        assert_eq!(opened(&mut running).await, StartedFrom::AfterLoss, "{case}");
        while commands.distinct() < 2 {
            running.swept().await;
        }
        orders.insert_one(doc! { "_id": "afterwards", "outbox": [minimal()] }).await.unwrap();
        while commands.distinct() < 3 {
            running.page().await;
        }
        running.stop().await.unwrap();
        world.end().await;
    }
}

#[tokio::test]
async fn a_lost_position_can_stop_the_rescuer_unchanged() {
    let world = World::new().await;
    world.indexed_orders().await;
    with_position(&world, world.settings()).await;
    let forged = doc! { "$set": { "token": { "_data": "garbage" } } };
    world.positions().update_one(doc! {}, forged).await.unwrap();
    let settings = world.settings().with(|settings| settings.on_history_lost = OnHistoryLost::Fail);
    let running = world.start(&Recorder::new(), settings).await;
    let error = running.task.await.unwrap().unwrap_err();
    assert!(matches!(error, RescuerError::PositionLost { .. }), "{error}");
    assert!(error.to_string().contains("on_history_lost"), "{error}");
    let position = world.position().await;
    assert_eq!(position.get_document("token").ok(), Some(&doc! { "_data": "garbage" }));
    world.end().await;
}

#[tokio::test]
async fn changed_patterns_restart_at_the_time_of_the_position() {
    let world = World::new().await;
    let one = format!("{}.orders", world.db.name()).parse().unwrap();
    let narrow = world.settings().with(|settings| settings.watch = vec![one]);
    with_position(&world, narrow).await;
    let stock = world.db.collection::<Document>("stock");
    stock.insert_one(doc! { "_id": "while down", "outbox": [dated(0, 0)] }).await.unwrap();
    let commands = Recorder::new();
    let mut running = world.start(&commands, world.settings()).await;
    assert_eq!(opened(&mut running).await, StartedFrom::ChangedPatterns);
    running
        .wait("the stream to queue a message that was saved meanwhile", |event| match event {
            RescueEvent::PageDone { changes, .. } => (*changes > 0).then_some(()),
            _ => None,
        })
        .await;
    while commands.distinct() < 1 {
        running.page().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// P7: no message is lost if the position is lost.
#[tokio::test]
async fn a_position_copied_from_another_cluster_is_rejected() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    with_position(&world, world.settings()).await;
    orders.insert_one(doc! { "_id": "while down", "outbox": [minimal()] }).await.unwrap();
    // This is the state after a dump and a restore: the position is unchanged, but this server has created
    // the collection that contains the position.
    let position = world.position().await;
    world.positions().drop().await.unwrap();
    world.positions().insert_one(position).await.unwrap();
    let commands = Recorder::new();
    let mut running = world.start(&commands, world.settings()).await;
    let reason = running
        .wait("a lost position", |event| match event {
            RescueEvent::PositionLost { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert!(reason.contains("another cluster"), "{reason}");
    assert_eq!(opened(&mut running).await, StartedFrom::AfterLoss);
    while commands.distinct() < 1 {
        running.swept().await;
    }
    running.stop().await.unwrap();
    let mut again = world.start(&Recorder::new(), world.settings()).await;
    assert_eq!(opened(&mut again).await, StartedFrom::Position, "the position is one of this cluster now");
    again.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn dropped_positions_are_recreated_for_this_cluster() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    world.positions().drop().await.unwrap();
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    running.stepped_back().await;
    running.owned().await;
    running.saved().await;
    running.stop().await.unwrap();

    let mut again = world.start(&Recorder::new(), world.settings()).await;
    assert_eq!(opened(&mut again).await, StartedFrom::Position);
    again.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_lost_position_ends_no_other_stream() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let watch = ["audit@2s", "*"].map(|name| format!("{}.{name}", world.db.name()).parse().unwrap());
    let settings = world.settings().with(|settings| {
        settings.watch = watch.to_vec();
        settings.on_history_lost = OnHistoryLost::Fail;
    });
    let mut running = world.start(&Recorder::new(), settings.clone()).await;
    opened(&mut running).await;
    opened(&mut running).await;
    running.stop().await.unwrap();
    let forged = doc! { "$set": { "token": { "_data": "garbage" } } };
    world.positions().update_one(doc! { "_id": "default@2s" }, forged).await.unwrap();

    let commands = Recorder::new();
    let mut running = world.start(&commands, settings).await;
    until_some("the trouble to show", || {
        let status = running.status.snapshot();
        status.streams[1].troubles.iter().any(|trouble| trouble.contains("is lost")).then_some(())
    })
    .await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    while commands.distinct() < 1 {
        running.page().await;
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// A token with a time in the future opens a stream without an error, but the stream shows no changes until
/// that time.
#[tokio::test]
async fn a_position_ahead_of_the_servers_time_is_lost() {
    let world = World::new().await;
    with_position(&world, world.settings()).await;
    let ahead = Timestamp { time: u32::MAX, increment: 1 };
    world.positions().update_one(doc! {}, doc! { "$set": { "cluster_time": ahead } }).await.unwrap();
    let mut running = world.start(&Recorder::new(), world.settings()).await;
    let lost = |event: &RescueEvent| matches!(event, RescueEvent::PositionLost { .. }).then_some(());
    running.wait("a lost position", lost).await;
    assert_eq!(opened(&mut running).await, StartedFrom::AfterLoss);
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_requested_start_time_overrides_the_position() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": "early", "outbox": [dated(0, -3_600_000)] }).await.unwrap();
    let start_at = Some(Timestamp { time: world.server_time().await.time - 1, increment: 1 });
    with_position(&world, world.settings()).await;
    let commands = Recorder::new();
    let settings = world.settings().with(|settings| settings.start_at = start_at);
    let mut running = world.start(&commands, settings.clone()).await;
    assert_eq!(opened(&mut running).await, StartedFrom::Asked);
    // The change is read again, although its document needs no command.
    let (changes, _, queued) = running.page().await;
    assert!(changes >= 1 && queued == 0, "{changes} changes, {queued} queued");
    // `start_at` applies only once in a process: in its next term, the rescuer starts at the saved
    // position.
    let another = doc! { "$set": { "owner": "other/1", "until": DateTime::from_millis(0) } };
    running.saved().await;
    world.leases().update_one(doc! {}, another).await.unwrap();
    running.stepped_back().await;
    assert_eq!(opened(&mut running).await, StartedFrom::Position);
    running.stop().await.unwrap();
    world.end().await;
}

async fn ended(running: Running) -> RescuerError {
    tokio::time::timeout(PATIENCE, running.task).await.expect("it ends").expect("no panic").unwrap_err()
}

/// If the server refuses a stream for a reason other than its position, the position must be kept, and the
/// refusal of one pattern doesn't affect the other patterns.
#[tokio::test]
async fn a_view_does_not_stop_other_streams() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    world.db.run_command(doc! { "create": "audit", "viewOn": "orders", "pipeline": [] }).await.unwrap();
    let watch = ["audit@2s", "*"].map(|name| format!("{}.{name}", world.db.name()).parse().unwrap());
    let settings = world.settings().with(|settings| settings.watch = watch.to_vec());
    let commands = Recorder::new();
    let mut running = world.start(&commands, settings).await;
    opened(&mut running).await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    running.page().await;
    assert_eq!(commands.distinct(), 1);

    let refused = until_some("the trouble to show", || {
        let status = running.status.snapshot();
        status.streams[1].troubles.first().cloned().zip(Some(status.not_ready))
    });
    let (trouble, not_ready) = refused.await;
    assert!(trouble.contains("not views") && not_ready[0].contains("default@2s"), "{trouble}; {not_ready:?}");

    // The stream is opened without a restart as soon as the collection can be watched.
    let audit = world.db.collection::<Document>("audit");
    audit.drop().await.unwrap();
    index(&audit).await;
    opened(&mut running).await;
    audit.insert_one(doc! { "_id": 2, "outbox": [minimal()] }).await.unwrap();
    while commands.distinct() < 2 {
        running.page().await;
    }
    until_some("the trouble to end", || {
        running.status.snapshot().streams[1].troubles.is_empty().then_some(())
    })
    .await;
    running.stop().await.unwrap();
    world.end().await;
}

/// The position's token is damaged, and the server's error doesn't reveal that the token is the
/// cause.
#[tokio::test]
async fn an_unknown_error_costs_the_position_only_later() {
    let world = World::new().await;
    with_position(&world, world.settings()).await;
    let odd = doc! { "$set": { "token": { "_data": "82596878000000000129295A1004" } } };
    world.positions().update_one(doc! {}, odd).await.unwrap();
    let wait = Duration::from_secs(2);
    let settings = world.settings().with(|settings| settings.refused_for = wait);
    let begun = std::time::Instant::now();
    let mut running = world.start(&Recorder::new(), settings).await;
    let lost = |event: &RescueEvent| matches!(event, RescueEvent::PositionLost { .. }).then_some(());
    running.wait("a lost position", lost).await;
    assert!(begun.elapsed() >= wait, "{:?}", begun.elapsed());
    running.stop().await.unwrap();
    world.end().await;
}

/// Panics in a place that only the sweep reaches, or only the stream reaches.
struct Panicking {
    in_sweep: bool,
}

#[async_trait::async_trait]
impl outbox_rescuer::Commands for Panicking {
    async fn send(
        &self,
        _: Vec<document_outbox::command::ProcessDocumentMessages>,
    ) -> Vec<Result<(), document_outbox::SendFailure>> {
        panic!("as a test wants it")
    }

    async fn ready(&self) {
        assert!(!self.in_sweep, "as a test wants it");
        std::future::pending::<()>().await;
    }
}

/// Panics in a place that only the task that renews the lease reaches.
#[derive(Default)]
struct PanickingLater(std::sync::atomic::AtomicBool);

#[async_trait::async_trait]
impl outbox_rescuer::Commands for PanickingLater {
    async fn send(
        &self,
        commands: Vec<document_outbox::command::ProcessDocumentMessages>,
    ) -> Vec<Result<(), document_outbox::SendFailure>> {
        commands.into_iter().map(|_| Ok(())).collect()
    }

    async fn ready(&self) {}

    fn is_ready(&self) -> bool {
        assert!(!self.0.load(std::sync::atomic::Ordering::SeqCst), "as a test wants it");
        true
    }
}

#[tokio::test]
async fn a_panic_of_another_task_ends_the_rescuer() {
    let world = World::new().await;
    let commands = std::sync::Arc::new(PanickingLater::default());
    let mut running = world.start(&commands, world.settings()).await;
    opened(&mut running).await;
    commands.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = ended(running).await;
    assert!(matches!(error, RescuerError::Panicked(_)), "{error}");
    world.end().await;
}

#[tokio::test]
async fn a_panic_in_one_half_is_an_error() {
    for in_sweep in [true, false] {
        let world = World::new().await;
        let running = world.start(&std::sync::Arc::new(Panicking { in_sweep }), world.settings()).await;
        let inserting = async {
            // Inserts repeatedly, because the stream shows only changes that are made after it is open.
            for id in 0.. {
                world.orders().insert_one(doc! { "_id": id, "outbox": [minimal()] }).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let error = tokio::select! {
            error = ended(running) => error,
            () = inserting => unreachable!(),
        };
        assert!(matches!(error, RescuerError::Panicked(_)), "{error}");
        world.end().await;
    }
}

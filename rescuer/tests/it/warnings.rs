//! Tests that the rescuer warns about conditions that cause problems, and that each warning gives the numbers
//! that show the condition.

use std::time::Duration;

use mongodb::{
    IndexModel,
    bson::{Bson, DateTime, Document, doc},
    options::IndexOptions,
};
use outbox_rescuer::{Expiry, RescueEvent, Unwatchable, Warning};

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
async fn inline_claims_longer_than_the_delay_are_reported() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    let mut claimed = dated(0, -60_000);
    claimed.insert("claimed_by", "application/1");
    orders.insert_one(doc! { "_id": 1, "outbox": [claimed] }).await.unwrap();
    let lease = Duration::from_mins(1);
    assert_eq!(warned(&mut running).await, Warning::InlineLeaseLong { lease, delay: DELAY });
    running.stop().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_share_of_late_inline_documents_is_reported() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let delay = DELAY * 5;
    let mut running =
        world.started(&commands, world.settings().with(|settings| settings.delay = delay)).await;
    orders.insert_many((0..220).map(|id| doc! { "_id": id, "outbox": [dated(0, 0)] })).await.unwrap();
    // The messages of all documents except the first 30 are delivered.
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
async fn a_grace_longer_than_the_lease_is_reported() {
    let (world, commands) = (World::new().await, Recorder::new());
    let grace = Duration::from_secs(25);
    let settings = world.settings().with(|settings| settings.shutdown_grace = Some(grace));
    let lease = settings.ownership_lease;
    let mut running = world.start(&commands, settings).await;
    assert_eq!(warned(&mut running).await, Warning::GraceLong { grace, lease });
    running.stop().await.unwrap();
    world.end().await;
}

/// P8: a typing error in `watch` doesn't appear as a collection without changes.
#[tokio::test]
async fn a_pattern_without_collections_is_reported_by_name() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    world.db.run_command(doc! { "create": "open", "viewOn": "orders", "pipeline": [] }).await.unwrap();
    world.db.run_command(doc! { "create": "clicks", "timeseries": { "timeField": "at" } }).await.unwrap();
    let own = |name: &str| format!("{}.{name}", world.db.name()).parse().unwrap();
    let capital = format!("R{}", &world.db.name()[1..]);
    let other_case = format!("{capital}.orders").parse().unwrap();
    let watch = vec![own("orders"), own("Orders"), own("order"), other_case, own("open"), own("clicks")];
    let mut running = world.start(&commands, world.settings().with(|settings| settings.watch = watch)).await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        match warned(&mut running).await {
            Warning::Unwatchable { pattern, why } => seen.push((pattern.to_string(), why)),
            other => panic!("{other}"),
        }
    }
    seen.sort_by(|one, other| one.0.cmp(&other.0));
    let missing = || Unwatchable::Missing { hint: format!(" (did you mean {}?)", orders.namespace()) };
    let named = |name: &str| format!("{}.{name}", world.db.name());
    assert_eq!(
        seen,
        [
            (format!("{capital}.orders"), missing()),
            (named("Orders"), missing()),
            (named("clicks"), Unwatchable::TimeSeries),
            (named("open"), Unwatchable::View),
            (named("order"), missing()),
        ]
    );
    while commands.distinct() < 1 {
        running.swept().await;
    }
    assert_eq!(commands.ids(), [Bson::from(1)], "the others continue");
    let problems = running.status.snapshot().streams[0].problems.join("; ");
    for name in [
        "Orders matches no collection",
        "order matches no collection",
        "open is a view",
        "clicks is a time series",
    ] {
        assert!(problems.contains(name), "{problems}");
    }
    running.stop().await.unwrap();
    world.end().await;
}

/// P8: a message that the server deletes was neither delivered nor dead.
#[tokio::test]
async fn collections_that_lose_documents_are_warned_of() {
    let (world, commands) = (World::new().await, Recorder::new());
    let expiring = |partial: Option<Document>| {
        let options = IndexOptions::builder()
            .name("expires".to_owned())
            .expire_after(Duration::from_hours(1))
            .partial_filter_expression(partial)
            .build();
        IndexModel::builder().keys(doc! { "expires_at": 1 }).options(options).build()
    };
    let orders = world.indexed_orders().await;
    orders.create_index(expiring(None)).await.unwrap();
    // With this index, documents expire only when their outbox is empty.
    let safe = world.db.collection::<Document>("safe");
    index(&safe).await;
    safe.create_index(expiring(Some(doc! { "outbox": [] }))).await.unwrap();
    // This collection has no outbox, so its index does not concern the rescuer.
    world.db.collection::<Document>("sessions").create_index(expiring(None)).await.unwrap();
    world.db.run_command(doc! { "create": "log", "capped": true, "size": 65_536 }).await.unwrap();
    let log = world.db.collection::<Document>("log");
    index(&log).await;
    let mut dead = minimal();
    dead.insert("dead_at", DateTime::now());
    for collection in [&orders, &log] {
        for (count, entry) in [(100, minimal()), (20, dead.clone())] {
            let document = doc! { "outbox": [entry], "padding": "x".repeat(600) };
            collection.insert_many(vec![document; count]).await.unwrap();
        }
    }
    let left = log.count_documents(doc! {}).await.unwrap();
    assert!(left < 120, "the capped collection has lost none of its documents");
    let mut running = world.start(&commands, world.settings()).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match warned(&mut running).await {
            Warning::DocumentsExpire { namespace, expiry } => seen.push((namespace.coll, expiry)),
            other => panic!("{other}"),
        }
    }
    running.swept().await;
    seen.sort_by(|one, other| one.0.cmp(&other.0));
    let expected =
        [("log".to_owned(), Expiry::Capped), ("orders".to_owned(), Expiry::TtlIndex("expires".into()))];
    assert_eq!(seen, expected);
    assert_eq!(running.status.snapshot().streams[0].problems.len(), 2);
    running.stop().await.unwrap();
    world.end().await;
}

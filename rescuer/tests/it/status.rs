//! Tests what a rescuer reports about itself: its metrics and its status.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use document_outbox::{SendFailure, command::ProcessDocumentMessages};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use mongodb::bson::{DateTime, bson, doc};
use outbox_rescuer::{Commands, RescueEvent, Role};

use crate::support::*;

/// A recorder for this test's thread. The test's rescuers run in the same thread.
fn recorder() -> (PrometheusRecorder, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (recorder, handle)
}

/// Returns the value of each series, as a scrape shows it. The value of a histogram is its number of samples.
fn values(handle: &PrometheusHandle) -> BTreeMap<String, f64> {
    let text = handle.render();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let lines = lines.filter(|line| !line.contains("quantile=") && !line.contains("_sum"));
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let mut labels: Vec<_> =
            labels.trim_end_matches('}').split(',').map(|label| label.replace('"', "")).collect();
        labels.sort();
        (format!("{}{{{}}}", name.trim_end_matches("_count"), labels.join(",")), value.parse().unwrap())
    };
    lines.map(value).collect()
}

/// Returns, for each name of a series, its kind and whether it has a help text.
fn kinds(handle: &PrometheusHandle) -> BTreeMap<String, String> {
    let text = handle.render();
    let of = |tag: &'static str| {
        text.lines().filter_map(move |line| line.strip_prefix(tag)?.trim().split_once(' '))
    };
    let described: BTreeSet<&str> = of("# HELP").map(|(name, _)| name).collect();
    let kinds = of("# TYPE").filter(|(name, _)| described.contains(name));
    kinds.map(|(name, kind)| (name.to_owned(), kind.replace("summary", "histogram"))).collect()
}

/// The labels in one part of a cell: several labels without values, or one label with its values.
fn parts(part: &str) -> Vec<&str> {
    if part.contains(':') { vec![part] } else { part.split(", ").collect() }
}

/// The rows of docs/metrics.md for the rescuer: name, kind, and the labels with fixed values.
fn contract() -> Vec<(String, String, BTreeMap<String, Vec<String>>)> {
    let text = include_str!("../../../docs/metrics.md");
    let section = text.split("\n## ").find(|section| section.starts_with("The rescuer\n")).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `outbox_"));
    let row = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let mut labels: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for part in cells[2].split("; ").flat_map(parts) {
            // A part is, for example, "`stream`", or "`cause`: `error`, `held`".
            let words: Vec<String> = part.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            let fixed = part.split_once(": ").map_or(0, |(_, values)| values.matches('`').count() / 2);
            let (names, values) = words.split_at(words.len() - fixed);
            for name in names {
                labels.insert(name.clone(), Vec::new());
            }
            if let Some(last) = names.last() {
                labels.insert(last.clone(), values.to_vec());
            }
        }
        (format!("outbox_{}", cells[0].trim_matches('`')), cells[1].to_owned(), labels)
    };
    rows.map(row).collect()
}

/// P8: nothing is silent.
#[tokio::test]
async fn exactly_the_documented_series_start_at_zero() {
    let (recorder, handle) = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    let watch = vec!["shop.orders".parse().unwrap()];
    let settings = world.settings().with(|settings| settings.watch = watch);
    let commands = Recorder::new();
    let rescuer = outbox_rescuer::Rescuer::new(world.client.clone(), commands, settings).unwrap();
    let (mut expected, mut kinds_expected) = (BTreeSet::new(), BTreeMap::new());
    let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, kind, labels) in contract() {
        let mut sets = vec![String::new()];
        for (label, values) in labels {
            let values = match label.as_str() {
                "stream" => vec!["default".to_owned()],
                "collection" | "pattern" => vec!["shop.orders".to_owned()],
                // The table lists a label's values only where the label first occurs.
                name if values.is_empty() => known[name].clone(),
                name => {
                    known.insert(name.to_owned(), values.clone());
                    values
                }
            };
            let add = |set: &String, value: &String| match set.as_str() {
                "" => format!("{label}={value}"),
                set => format!("{set},{label}={value}"),
            };
            sets = sets
                .iter()
                .flat_map(|set| values.iter().map(move |value| (set, value)))
                .map(|(set, value)| add(set, value))
                .collect();
        }
        expected.extend(sets.into_iter().map(|set| format!("{name}{{{set}}}")));
        kinds_expected.insert(name, kind);
    }
    let there = values(&handle);
    for (series, value) in &there {
        // The counts of a collection are unknown until it was counted.
        let is_counted = series.contains("collection=");
        assert!(*value == 0.0 && !is_counted || value.is_nan() && is_counted, "{series} {value}");
    }
    assert_eq!(there.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(kinds(&handle), kinds_expected);
    drop(rescuer);
    world.end().await;
}

#[tokio::test]
async fn each_event_moves_its_series() {
    let (recorder, handle) = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    orders.create_index(document_outbox::store::indexes()[1].clone()).await.unwrap();
    let name = orders.namespace().to_string();
    orders.insert_one(doc! { "_id": "old", "outbox": [dated(60_000, 60_000)] }).await.unwrap();
    let mut dead = minimal();
    dead.insert("dead_at", DateTime::now());
    orders.insert_one(doc! { "_id": "dead", "outbox": [dead.clone(), dead, "odd"] }).await.unwrap();
    let totals_interval = Duration::from_millis(50);
    let mut running = world
        .started(&commands, world.settings().with(|settings| settings.totals_interval = totals_interval))
        .await;
    orders.insert_one(doc! { "_id": "new", "outbox": [dated(0, 0)] }).await.unwrap();
    running.page().await;
    running.saved().await;
    let begun = std::time::Instant::now();
    let of = |series: &BTreeMap<String, f64>, name: &str| series.get(name).copied().unwrap_or(-1.0);
    let seen = loop {
        let seen = values(&handle);
        let pending = of(&seen, &format!("outbox_pending_documents{{collection={name}}}"));
        let age = of(&seen, "outbox_stream_token_age_seconds{stream=default}");
        let headroom = of(&seen, "outbox_oplog_headroom_seconds{stream=default}");
        if pending == 3.0 && age > 0.0 && headroom > 0.0 {
            break seen;
        }
        assert!(begun.elapsed() < PATIENCE, "{seen:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for (series, value) in [
        ("outbox_commands_queued_total{reason=stream}", 1.0),
        ("outbox_commands_queued_total{reason=sweep}", 1.0),
        ("outbox_rescue_lag_seconds{reason=stream}", 1.0),
        ("outbox_rescue_lag_seconds{reason=sweep}", 1.0),
        ("outbox_stream_events_total{stream=default}", 1.0),
        ("outbox_lease_owner{stream=default}", 1.0),
        ("outbox_lease_changes_total{stream=default}", 1.0),
        ("outbox_sweeps_total{result=done,stream=default}", 1.0),
        ("outbox_sweep_seconds{stream=default}", 1.0),
        ("outbox_indexes_missing{}", 0.0),
        (&format!("outbox_dead_messages{{collection={name}}}"), 2.0),
    ] {
        assert!(of(&seen, series) >= value, "{series}: {seen:#?}");
    }
    let oldest = of(&seen, &format!("outbox_oldest_pending_age_seconds{{collection={name}}}"));
    assert!((60.0..120.0).contains(&oldest), "{oldest}");
    let age = of(&seen, "outbox_stream_token_age_seconds{stream=default}");
    assert!(age < 60.0, "{age}");
    running.stop().await.unwrap();
    // A rescuer that doesn't own the stream reports no values for the stream.
    let after = values(&handle);
    assert_eq!(of(&after, "outbox_lease_owner{stream=default}"), 0.0);
    assert!(of(&after, &format!("outbox_pending_documents{{collection={name}}}")).is_nan());
    world.end().await;
}

#[tokio::test]
async fn all_streams_together_count_collections_without_index() {
    let (recorder, handle) = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (world, commands) = (World::new().await, Recorder::new());
    for name in ["orders", "stock", "mails"] {
        world.db.create_collection(name).await.unwrap();
    }
    index(&world.db.collection("mails")).await;
    world.db.collection("stock").insert_one(doc! { "outbox": [] }).await.unwrap();
    let own = |text: &str| text.replace("DB", world.db.name()).parse().unwrap();
    let watch = vec![own("DB.orders@2s"), own("DB.*")];
    let mut running = world.start(&commands, world.settings().with(|settings| settings.watch = watch)).await;
    running.swept().await;
    running.swept().await;
    let missing = || values(&handle)["outbox_indexes_missing{}"];
    assert_eq!(missing(), 2.0);
    running.stop().await.unwrap();
    assert_eq!(missing(), 0.0);
    world.end().await;
}

#[tokio::test]
async fn the_status_of_each_shows_who_owns_what() {
    let world = World::new().await;
    let settings = world.settings().with(|settings| settings.ownership_lease = Duration::from_mins(10));
    let mut first = world.start(&Recorder::new(), settings.clone()).await;
    first.owned().await;
    let mut second = world.start(&Recorder::new(), settings).await;
    second.standing_by().await;
    let opened = |event: &RescueEvent| matches!(event, RescueEvent::PositionSaved { .. }).then_some(());
    first.wait("the position to be saved", opened).await;
    let (owner, standby) = (first.status.snapshot(), second.status.snapshot());
    assert_eq!((&owner.not_ready[..], &standby.not_ready[..]), (&[][..], &[][..]));
    assert_eq!((owner.streams[0].role, standby.streams[0].role), (Role::Owner, Role::Standby));
    for status in [&owner, &standby] {
        assert_eq!(status.streams[0].owner.as_deref(), Some(owner.name.as_str()));
        assert_eq!(status.streams[0].epoch, Some(1));
        assert!(status.streams[0].lease_ends_in.is_some_and(|seconds| seconds > 0.0));
    }
    assert!(owner.streams[0].position.as_deref().is_some_and(|time| time.starts_with("20")));
    assert_ne!(owner.name, standby.name);
    let json = serde_json::to_value(&owner).unwrap();
    assert_eq!(json["streams"][0]["role"], "owner");
    assert_eq!(json["streams"][0]["patterns"][0], format!("{}.*", world.db.name()));
    first.stop().await.unwrap();
    second.owned().await;
    assert_eq!(second.status.snapshot().streams[0].role, Role::Owner);
    second.stop().await.unwrap();
    world.end().await;
}

/// The rescuer is connected, but no queue takes a command: readiness must not report success.
#[tokio::test]
async fn commands_that_are_refused_show_in_readiness() {
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let mut running = world.started(&commands, world.settings()).await;
    assert_eq!(running.status.snapshot().not_ready, [""; 0]);
    assert!(running.status.snapshot().streams[0].able);
    commands.away.store(true, std::sync::atomic::Ordering::SeqCst);
    orders.insert_one(doc! { "_id": 1, "outbox": [minimal()] }).await.unwrap();
    let failed = |event: &RescueEvent| matches!(event, RescueEvent::CommandsFailed { .. }).then_some(());
    running.wait("a refusal", failed).await;
    let not_ready = running.status.snapshot().not_ready.join("; ");
    assert!(not_ready.contains("could not send commands: away"), "{not_ready}");

    commands.away.store(false, std::sync::atomic::Ordering::SeqCst);
    running.page().await;
    assert_eq!(running.status.snapshot().not_ready, [""; 0]);
    running.stop().await.unwrap();
    world.end().await;
}

/// A sender that is never ready, as if the broker were unavailable, or whose commands for some documents are
/// refused.
#[derive(Default)]
struct Broken {
    away: bool,
}

#[async_trait::async_trait]
impl Commands for Broken {
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        let refuse = |_| Err(SendFailure::Refused("its key is too long".into()));
        commands.into_iter().map(refuse).collect()
    }

    async fn ready(&self) {
        if self.away {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits until the series satisfy a condition.
async fn until(handle: &PrometheusHandle, wanted: impl Fn(&BTreeMap<String, f64>) -> bool) {
    let begun = std::time::Instant::now();
    loop {
        let seen = values(handle);
        if wanted(&seen) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{seen:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// P8: the figures are needed most while no command can be sent.
#[tokio::test]
async fn the_backlog_is_counted_without_a_broker() {
    let (recorder, handle) = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let mut retrying = dated(300_000, -3_600_000);
    retrying.insert("attempts", 3);
    let mut claimed = dated(60_000, -3_600_000);
    claimed.insert("claimed_by", "dispatcher/1");
    let mut dead = minimal();
    dead.insert("dead_at", DateTime::now());
    let outboxes = [
        bson!([dated(60_000, 60_000), dated(60_000, 60_000)]),
        bson!([retrying, dead]),
        bson!([claimed, dated(0, -3_600_000), "odd"]),
    ];
    let totals_interval = Duration::from_millis(50);
    let settings = world.settings().with(|settings| settings.totals_interval = totals_interval);
    for outbox in outboxes {
        orders.insert_one(doc! { "outbox": outbox }).await.unwrap();
    }
    let due = || doc! { "outbox": [dated(60_000, 60_000)] };
    orders.insert_many((0..100).map(|_| due())).await.unwrap();
    let running = world.start(&Arc::new(Broken { away: true }), settings).await;
    let name = orders.namespace().to_string();
    let of = |seen: &BTreeMap<String, f64>, series: &str| {
        seen.get(&format!("{series}{{collection={name}}}")).copied().unwrap_or(f64::NAN)
    };
    until(&handle, |seen| of(seen, "outbox_pending_documents") == 103.0).await;
    let seen = values(&handle);
    let in_state = |state: &str| seen[&format!("outbox_messages{{collection={name},state={state}}}")];
    let states = ["due", "claimed", "retrying", "scheduled", "dead"].map(in_state);
    assert_eq!(states, [102.0, 1.0, 1.0, 1.0, 1.0]);
    let oldest = of(&seen, "outbox_oldest_pending_age_seconds");
    assert!((60.0..300.0).contains(&oldest), "of what is due: {oldest}");
    let oldest = of(&seen, "outbox_oldest_undelivered_age_seconds");
    assert!((300.0..600.0).contains(&oldest), "with the retrying one: {oldest}");
    assert_eq!(of(&seen, "outbox_fullest_outbox_entries"), 3.0);
    assert_eq!(of(&seen, "outbox_dead_messages"), 1.0, "without the index for them");
    assert_eq!(seen["outbox_indexes_missing{}"], 1.0, "that index");

    // A dropped collection has no series any more.
    orders.drop().await.unwrap();
    until(&handle, |seen| of(seen, "outbox_pending_documents").is_nan()).await;
    running.stop().await.unwrap();
    world.end().await;
}

/// P8: the field `outbox` can have any value, and can be written while the rescuer runs or before
/// it starts.
#[tokio::test]
async fn an_outbox_of_any_shape_is_reported_and_counted() {
    let (recorder, handle) = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (world, commands) = (World::new().await, Recorder::new());
    let orders = world.indexed_orders().await;
    let shapes = |prefix: &str| {
        let shapes = [
            doc! { "outbox": ["x"] },
            doc! { "outbox": { "id": 1 } },
            doc! { "outbox": 7 },
            doc! { "outbox": "text" },
            doc! { "outbox": [{ "type": "t" }] },
            doc! { "outbox": [null] },
        ];
        let mut documents = Vec::new();
        for (at, shape) in shapes.into_iter().enumerate() {
            let mut document = doc! { "_id": format!("{prefix}{at}") };
            document.extend(shape);
            documents.push(document);
        }
        documents
    };
    orders.insert_many(shapes("before")).await.unwrap();
    let settings = world.settings().with(|settings| settings.sweep_interval = Duration::from_millis(50));
    let mut running = world.start(&commands, settings).await;
    let mut seen = BTreeSet::new();
    let all = |seen: &mut BTreeSet<String>, event: &RescueEvent, count: usize| {
        if let RescueEvent::Unreadable { document, .. } = event {
            seen.insert(document.subject());
        }
        (seen.len() == count).then_some(())
    };
    running.wait("the earlier ones", |event| all(&mut seen, event, 6)).await;
    orders.insert_many(shapes("insert")).await.unwrap();
    running.wait("those that are inserted", |event| all(&mut seen, event, 12)).await;
    orders.insert_one(doc! { "_id": "update", "outbox": [] }).await.unwrap();
    orders.update_one(doc! { "_id": "update" }, doc! { "$set": { "outbox": { "id": 1 } } }).await.unwrap();
    running.wait("the updated one", |event| all(&mut seen, event, 13)).await;
    until(&handle, |seen| seen["outbox_unreadable_total{}"] >= 13.0).await;
    assert_eq!(commands.ids(), []);
    running.stop().await.unwrap();
    world.end().await;
}

/// P8: a document for which no command can be made is listed and counted, and causes one warning.
#[tokio::test]
async fn a_document_without_a_command_is_listed_once() {
    let (recorder, handle) = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    orders.insert_one(doc! { "_id": "long", "outbox": [dated(60_000, 60_000)] }).await.unwrap();
    let settings = world.settings().with(|settings| settings.sweep_interval = Duration::from_millis(50));
    let mut running = world.start(&Arc::new(Broken::default()), settings).await;
    let (mut unsendable, mut rounds) = (0, 0);
    running
        .wait("rounds", |event| {
            unsendable += usize::from(matches!(event, RescueEvent::Unsendable { .. }));
            rounds += usize::from(matches!(event, RescueEvent::SweepDone { .. }));
            (rounds == 5).then_some(())
        })
        .await;
    assert_eq!(unsendable, 1);
    let problems = &running.status.snapshot().streams[0].problems;
    assert!(
        problems[0].contains("no command can be made for ") && problems[0].contains("orders/long"),
        "{problems:?}"
    );
    let seen = values(&handle);
    assert_eq!((seen["outbox_unsendable_total{}"], seen["outbox_commands_failed_total{}"]), (1.0, 0.0));
    running.stop().await.unwrap();
    world.end().await;
}

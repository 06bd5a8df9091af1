//! Tests a worker's status and metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use document_outbox::{
    amqp::AmqpSettings,
    command::{COMMAND_TYPE, MAX_COMMAND_BYTES},
    deliver::Outcome,
    dispatch::{Processed, Processor, ProcessorSettings},
};
use metrics_util::{
    CompositeKey,
    debugging::{DebugValue, DebuggingRecorder, Snapshotter},
};
use outbox_dispatcher::{Dispatcher, DispatcherEvent, DispatcherSettings};

use crate::{
    scene::{Scene, quick_retry, slow_retry, until},
    support::{Recorder, uri},
};

/// The dispatcher's part of docs/metrics.md: every series, with each combination of its labels' values.
fn documented() -> BTreeSet<String> {
    let text = include_str!("../../../docs/metrics.md");
    let section = text.split("\n## ").find(|section| section.starts_with("The dispatcher\n")).unwrap();
    let mut all = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`').to_owned();
        let mut series = vec![format!("{} {name}", cells[2])];
        for label in cells[3].split(';').filter(|label| label.contains('`')) {
            let mut words = label.split('`').skip(1).step_by(2);
            let label = words.next().unwrap();
            let values: Vec<&str> = words.collect();
            let with = |value: &&str| {
                series.iter().map(|known| format!("{known} {label}={value}")).collect::<Vec<_>>()
            };
            series = values.iter().flat_map(with).collect();
        }
        all.extend(series);
    }
    all
}

/// Allows reading the series any number of times; the recorder itself drops values that were read.
struct Series {
    snapshotter: Snapshotter,
    known: BTreeMap<String, f64>,
}

impl Series {
    fn name(key: &CompositeKey) -> String {
        let labels = key.key().labels().map(|label| format!(" {}={}", label.key(), label.value()));
        let kind = format!("{:?}", key.kind()).to_lowercase();
        format!("{kind} {}{}", key.key().name(), labels.collect::<String>())
    }

    fn read(&mut self) -> &BTreeMap<String, f64> {
        for (key, _unit, description, value) in self.snapshotter.snapshot().into_vec() {
            assert!(description.is_some(), "{key:?} has no description");
            let name = Self::name(&key);
            match value {
                DebugValue::Counter(count) => *self.known.entry(name).or_default() += count as f64,
                DebugValue::Gauge(value) => drop(self.known.insert(name, value.0)),
                DebugValue::Histogram(_) => {}
            }
        }
        &self.known
    }

    /// The series that are not zero.
    fn counted(&mut self) -> BTreeMap<String, f64> {
        self.read()
            .iter()
            .filter(|(_, value)| **value > 0.0)
            .map(|(name, value)| (name.clone(), *value))
            .collect()
    }
}

fn series() -> (DebuggingRecorder, Series) {
    let recorder = DebuggingRecorder::new();
    let series = Series { snapshotter: recorder.snapshotter(), known: BTreeMap::new() };
    (recorder, series)
}

#[tokio::test]
async fn every_documented_series_starts_at_zero() {
    let (recorder, mut series) = series();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let client = mongodb::Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
    let processor = Processor::new(client, Arc::new(Recorder::default()), ProcessorSettings::default());
    let amqp = AmqpSettings::new(&uri("OUTBOX_RABBITMQ_URI")).unwrap();
    let settings = DispatcherSettings::new(["shop.*".parse().unwrap()]);
    let dispatcher = Dispatcher::new(processor, amqp, settings).unwrap();
    let documented = documented();
    let names: BTreeSet<&str> = documented.iter().filter_map(|series| series.split(' ').nth(1)).collect();
    let registered = series
        .read()
        .iter()
        .filter(|(series, _)| series.split(' ').nth(1).is_some_and(|name| names.contains(name)));
    let registered: BTreeMap<_, _> = registered.map(|(series, value)| (series.clone(), *value)).collect();
    assert_eq!(registered.keys().cloned().collect::<BTreeSet<_>>(), documented);
    assert!(registered.values().all(|value| *value == 0.0), "{registered:?}");
    let snapshot = dispatcher.status().snapshot();
    assert_eq!(snapshot.consumer.state, "idle");
    assert_eq!(snapshot.not_ready, ["commands are not being consumed: the consumer is idle"]);
}

/// A new rescuer may run before its dispatchers are replaced. The older dispatchers then ignore
/// unknown fields of its commands.
#[tokio::test]
async fn commands_are_counted_by_their_outcome() {
    let (recorder, mut series) = series();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let scene = Scene::set().await;
    for id in ["finished", "left", "later"] {
        scene.place(id, [1]).await;
    }
    let deliver = Recorder::default();
    deliver.answer([Outcome::Delivered, Outcome::Transient("no".into())]);
    let mut worker = scene.start_with(deliver.clone(), slow_retry(), scene.settings());
    scene.command("finished").await;
    worker.finished().await;
    scene.command("left").await;
    worker.left().await;
    let (database, collection) = (scene.test.database.name(), "orders");
    let later = format!(
        r#"{{"version":9,"database":"{database}","collection":"{collection}","document_key":{{"_id":"later"}},"reason":"prophecy","why":{{"$where":1}}}}"#
    );
    scene.publish_raw(Some(COMMAND_TYPE), later.into_bytes()).await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert!(scene.is_cleared("later").await);
    let elsewhere = br#"{"database":"other","collection":"c","document_key":{"_id":1},"reason":"stream"}"#;
    for body in [b"{}".to_vec(), vec![b'x'; MAX_COMMAND_BYTES + 1], elsewhere.to_vec()] {
        scene.publish_raw(Some(COMMAND_TYPE), body).await;
        worker.wait(|event| matches!(event, DispatcherEvent::Refused { .. }).then_some(())).await;
    }
    let documented = documented();
    let mut counted = series.counted();
    counted.retain(|series, _| documented.contains(series));
    let expected = [
        "counter outbox_commands_refused_total cause=malformed",
        "counter outbox_commands_refused_total cause=not_watched",
        "counter outbox_commands_refused_total cause=too_large",
        "counter outbox_commands_total reason=other outcome=finished",
        "counter outbox_commands_total reason=stream outcome=finished",
        "counter outbox_commands_total reason=stream outcome=left",
        "gauge outbox_consumer_ready",
    ];
    assert_eq!(counted, expected.map(|series| (series.to_owned(), 1.0)).into());
    worker.running.stop().await;
    scene.strike().await;
}

#[tokio::test]
async fn the_status_reports_unfinished_work_and_readiness() {
    let scene = Scene::set().await;
    scene.place("delivered", [1]).await;
    scene.place("kept", [2]).await;
    let recorder = Recorder::held();
    let mut settings = scene.settings();
    settings.rate = "200/s".parse().ok();
    let worker = scene.start_with(recorder.clone(), quick_retry(), settings);
    let ready = until(&worker.running, |status| status.not_ready.is_empty()).await;
    assert_eq!(
        (ready.consumer.state, ready.consumer.rebuilds, ready.consumer.last_error),
        ("ready", 0, None)
    );
    scene.command("delivered").await;
    recorder.wait_tried(1).await;
    let busy = worker.running.status().snapshot();
    assert_eq!((busy.in_flight, busy.kept, busy.concurrency, busy.prefetch), (1, 0, 32, 512));
    recorder.set_available(false);
    scene.command("kept").await;
    let unavailable = until(&worker.running, |status| status.kept == 1).await;
    assert_eq!(unavailable.not_ready, ["the destination of messages is unavailable"]);
    assert!(!unavailable.delivery_available);
    recorder.let_through(2);
    recorder.set_available(true);
    recorder.wait_delivered(2).await;
    let idle = until(&worker.running, |status| status.in_flight == 0).await;
    assert_eq!((idle.kept, &idle.not_ready), (0, &vec![]));
    let json = serde_json::to_value(&idle).unwrap();
    assert_eq!((json["consumer"]["state"].as_str(), json["rate"].as_str()), (Some("ready"), Some("200/s")));
    let status = worker.running.status();
    worker.running.stop().await;
    let stopped = status.snapshot();
    assert!(stopped.stopping && stopped.not_ready.len() == 2, "{stopped:?}");
    scene.strike().await;
}

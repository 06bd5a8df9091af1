//! Manages the gauges that can be removed again: those with the label `collection`.
//!
//! A collection can be dropped, and with patterns in `watch` there can be thousands of collections in a day.
//! The exporter keeps every recorded value until the process ends. So these gauges are kept here instead. A
//! gauge that is set to NaN, because its value wasn't counted or its collection no longer exists, is omitted
//! from the output and dropped.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{
    PrometheusRecorder,
    formatting::{sanitize_label_value, write_help_line, write_type_line},
};
use parking_lot::{Mutex, MutexGuard};

/// The label of gauges that can disappear.
const LABEL: &str = "collection";

/// Records all metrics, and keeps the gauges that can disappear separately.
pub(crate) struct Passing {
    lasting: PrometheusRecorder,
    gauges: Gauges,
}

/// The current gauges. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Gauges(Arc<Mutex<Series>>);

/// A metric's name, and its labels.
type Name = (String, Vec<(String, String)>);

#[derive(Default)]
struct Series {
    /// Ordered by name and labels, so that the lines of each name are adjacent.
    values: BTreeMap<Name, Arc<AtomicU64>>,
    descriptions: BTreeMap<String, String>,
}

impl Passing {
    pub(crate) fn new(lasting: PrometheusRecorder) -> Self {
        Self { lasting, gauges: Gauges::default() }
    }

    pub(crate) fn gauges(&self) -> Gauges {
        self.gauges.clone()
    }
}

impl Recorder for Passing {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.lasting.describe_counter(name, unit, description);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        let mut series = self.gauges.series();
        series.descriptions.insert(name.as_str().to_owned(), description.to_string());
        drop(series);
        self.lasting.describe_gauge(name, unit, description);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.lasting.describe_histogram(name, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.lasting.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        if key.labels().any(|label| label.key() == LABEL) {
            return self.gauges.register(key);
        }
        self.lasting.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.lasting.register_histogram(key, metadata)
    }
}

impl Gauges {
    fn series(&self) -> MutexGuard<'_, Series> {
        self.0.lock()
    }

    fn register(&self, key: &Key) -> Gauge {
        let mut labels = Vec::new();
        for label in key.labels() {
            labels.push((label.key().to_owned(), label.value().to_owned()));
        }

        let mut series = self.series();
        let value = series.values.entry((key.name().to_owned(), labels)).or_insert_with(no_value);
        Gauge::from_arc(value.clone())
    }

    /// The gauges that have a value, in Prometheus' text format. The other gauges are dropped.
    pub(crate) fn render(&self) -> String {
        let mut series = self.series();
        // A gauge with a live handle may be set again.
        series.values.retain(|_, value| has_value(value) || Arc::strong_count(value) > 1);

        let mut text = String::new();
        let mut last = None;
        for ((name, labels), value) in &series.values {
            if !has_value(value) {
                continue;
            }

            // Help and type are written once, before the first line of a name.
            if last != Some(name) {
                last = Some(name);
                if let Some(description) = series.descriptions.get(name) {
                    write_help_line(&mut text, name, None, None, description);
                }
                write_type_line(&mut text, name, None, None, "gauge");
            }

            let mut pairs = Vec::new();
            for (key, value) in labels {
                pairs.push(format!("{key}=\"{}\"", sanitize_label_value(value)));
            }
            let number = f64::from_bits(value.load(Ordering::Relaxed));
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name}{{{}}} {number}", pairs.join(","));
        }
        text
    }
}

fn no_value() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(f64::NAN.to_bits()))
}

fn has_value(value: &AtomicU64) -> bool {
    !f64::from_bits(value.load(Ordering::Relaxed)).is_nan()
}

#[cfg(test)]
mod tests {
    use metrics::{counter, describe_gauge, gauge, with_local_recorder};
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_gauge_of_a_collection_goes_with_it() {
        let recorder = Passing::new(PrometheusBuilder::new().build_recorder());
        let (gauges, handle) = (recorder.gauges(), recorder.lasting.handle());
        with_local_recorder(&recorder, || {
            describe_gauge!("outbox_dead_messages", "Dead messages.");
            gauge!("outbox_dead_messages", "collection" => "shop.orders").set(3.0);
            gauge!("outbox_dead_messages", "collection" => "shop.\"odd\"\n").set(0.0);
            gauge!("outbox_pending_documents", "collection" => "shop.orders").set(f64::NAN);
            gauge!("outbox_lease_owner", "stream" => "default").set(1.0);
            counter!("outbox_by_collection_total", "collection" => "shop.orders").increment(1);
        });
        let text = gauges.render();
        assert!(text.contains("# HELP outbox_dead_messages Dead messages."), "{text}");
        assert_eq!(text.matches("# TYPE outbox_dead_messages gauge").count(), 1, "{text}");
        assert!(text.contains("outbox_dead_messages{collection=\"shop.orders\"} 3"), "{text}");
        assert!(text.contains(r#"{collection="shop.\"odd\"\n"} 0"#), "{text}");
        assert!(!text.contains("pending"), "{text}");
        let lasting = handle.render();
        assert!(
            lasting.contains("outbox_lease_owner") && lasting.contains("outbox_by_collection_total"),
            "{lasting}"
        );
        assert!(!lasting.contains("outbox_dead_messages"), "{lasting}");

        with_local_recorder(&recorder, || {
            gauge!("outbox_dead_messages", "collection" => "shop.orders").set(f64::NAN);
        });
        assert!(!gauges.render().contains("shop.orders"));
        assert_eq!(gauges.series().values.len(), 1, "the gauge is dropped, not only omitted");
    }
}

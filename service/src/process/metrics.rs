//! The content of `/metrics`: everything recorded through the `metrics` facade, and the resources of the
//! process.

use std::time::Duration;

use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use crate::process::{
    passing::{Gauges, Passing},
    settings::Program,
};

/// Upper bounds of the buckets of all histograms, in seconds: for lags from a millisecond to an hour.
const BUCKETS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0, 1_800.0, 3_600.0,
];

/// The interval of calls to [`Exporter::upkeep`], without which samples that are never scraped would fill memory.
pub(crate) const UPKEEP: Duration = Duration::from_secs(5);

/// Why metrics can't be recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("the buckets of the histograms are invalid, which is a defect of this program; please report it")]
    Buckets(#[from] BuildError),
    #[error("this process already has a recorder for metrics; install only one")]
    Twice,
}

/// Renders the recorded metrics.
pub(crate) struct Exporter {
    recorded: PrometheusHandle,
    passing: Gauges,
    process: Collector,
}

impl Exporter {
    /// Records all metrics of this process from now on.
    pub(crate) fn install(program: &Program) -> Result<Self, InstallError> {
        let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS)?.build_recorder();
        let handle = recorder.handle();
        let recorder = Passing::new(recorder);
        let passing = recorder.gauges();
        metrics::set_global_recorder(recorder).map_err(|_| InstallError::Twice)?;

        describe_gauge!("outbox_build_info", "Always 1; the labels give the running service and version.");
        gauge!("outbox_build_info", "service" => program.name, "version" => program.version).set(1.0);

        let process = Collector::default();
        process.describe();

        Ok(Self { recorded: handle, passing, process })
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        self.process.collect();
        self.recorded.render() + &self.passing.render()
    }

    pub(crate) fn upkeep(&self) {
        self.recorded.run_upkeep();
    }
}

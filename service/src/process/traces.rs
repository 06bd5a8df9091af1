//! The export of traces, in builds that include it.

use std::{env, error::Error, time::Duration};

use tokio::runtime::Handle;

#[cfg(feature = "otlp")]
use crate::process::otlp::Export;
use crate::process::{settings::Program, telemetry::Spans};

/// The export of traces, if a collector is configured.
pub(crate) struct Traces {
    #[cfg(feature = "otlp")]
    export: Option<Export>,
}

type Started = Result<(Traces, Option<Spans>), Box<dyn Error + Send + Sync>>;

impl Traces {
    /// Starts to send traces from tasks of `runtime` to the collector, if one is configured.
    #[cfg(feature = "otlp")]
    pub(crate) fn start(program: &Program, runtime: &Handle) -> Started {
        let Some(endpoint) = collector() else {
            return Ok((Self { export: None }, None));
        };

        let (export, spans) = Export::start(program, &endpoint, runtime)?;
        Ok((Self { export: Some(export) }, Some(spans)))
    }

    #[cfg(not(feature = "otlp"))]
    #[expect(clippy::unnecessary_wraps, reason = "as in a build with the export")]
    pub(crate) fn start(_: &Program, _: &Handle) -> Started {
        Ok((Self {}, None))
    }

    /// Whether a collector is configured although this build can't export traces.
    pub(crate) fn are_missing() -> bool {
        cfg!(not(feature = "otlp")) && collector().is_some()
    }

    /// Sends the last traces, within this time.
    #[cfg(feature = "otlp")]
    pub(crate) fn flush(self, within: Duration) {
        if let Some(export) = self.export {
            export.flush(within);
        }
    }

    #[cfg(not(feature = "otlp"))]
    #[expect(clippy::unused_self, reason = "as in a build with the export")]
    pub(crate) fn flush(self, _: Duration) {}
}

/// The collector's address from the variables of the OpenTelemetry specification, if any.
fn collector() -> Option<String> {
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if is_disabled || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none") {
        return None;
    }

    variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))
}

/// An empty variable counts as not set.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

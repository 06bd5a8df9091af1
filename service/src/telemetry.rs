//! Logs, to standard error; and which spans and events anything may show.

use std::{
    env,
    io::{self, IsTerminal},
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterFn, ParseError},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::keys::LogFormat;

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is none; the key `log_filter` refuses such a text before this can happen.
    #[error("the log filter is invalid; correct log_filter")]
    Filter(#[from] ParseError),
    /// The process has a subscriber already; an embedding application that has its own doesn't call [`init`].
    #[error("logging is set up already; set it up once")]
    Twice(#[from] TryInitError),
}

/// Sends every event that `filter` lets pass to standard error. Text is coloured on a terminal only, and never if
/// `NO_COLOR` is set. Whatever the filter says, what would show a message or a password is left out.
///
/// # Errors
/// If the filter is invalid, or the process has a subscriber already.
pub fn init(format: LogFormat, filter: &str) -> Result<(), InitError> {
    init_with(format, filter, None)
}

/// What takes spans elsewhere.
pub(crate) type Spans = Box<dyn Layer<Registry> + Send + Sync>;

/// As [`init`], and hands spans that `filter` lets pass to `spans`.
pub(crate) fn init_with(format: LogFormat, filter: &str, spans: Option<Spans>) -> Result<(), InitError> {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(coloured()).with_filter(FilterFn::new(is_harmless)).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(FilterFn::new(is_harmless)).boxed(),
    };
    let layers: Vec<_> = spans.into_iter().chain([lines]).collect();
    Ok(tracing_subscriber::registry().with(layers).with(parse_filter(filter)?).try_init()?)
}

/// Unlike `EnvFilter::new`, refuses what it can't parse instead of dropping it.
pub(crate) fn parse_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(filter)
}

/// The AMQP client logs returned messages whole as a warning, and every frame, the login's too, at the level `trace`. The
/// export of traces and its HTTP client log the address of the collector and what that answers from `debug` on.
pub(crate) fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let (target, level) = (metadata.target(), *metadata.level());
    match target {
        "lapin::returned_messages" => false,
        _ if target.starts_with("lapin") => level <= Level::DEBUG,
        _ if target.starts_with("opentelemetry") || target.starts_with("hyper") => level <= Level::INFO,
        _ => true,
    }
}

/// Where the variables of the OpenTelemetry specification want traces sent to, if anywhere.
pub(crate) fn collector() -> Option<String> {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let is_off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let endpoint = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"));
    endpoint.filter(|_| !is_off)
}

/// <https://no-color.org>
fn coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

//! Writes logs to standard error, and filters out records that must not be shown.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{self, IsTerminal},
    panic::{self, PanicHookInfo},
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterFn, ParseError},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::process::log_line::{JsonLines, TextLines};

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// JSON for machines, one object per line.
    Json,
}

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is invalid. The key `log_filter` refuses such a text earlier.
    #[error("the log filter is invalid; correct log_filter")]
    Filter(#[from] ParseError),
    /// The process already has a subscriber. An embedding application that has its own subscriber must not
    /// call [`init`].
    #[error("logging is already set up; set it up only once")]
    Twice(#[from] TryInitError),
}

/// Writes every event that `filter` admits to standard error. Text is coloured only on a terminal,
/// and never if `NO_COLOR` is set. Records that would show a message or a password are omitted even
/// if the filter admits them. Every record takes one line, whatever values it contains. A panic is
/// logged as a record as well.
///
/// # Errors
/// Returns an error if the filter is invalid, or if the process already has a subscriber.
pub fn init(format: LogFormat, filter: &str) -> Result<(), InitError> {
    init_with(format, filter, None)
}

/// A layer that sends spans to another destination.
pub(crate) type Spans = Box<dyn Layer<Registry> + Send + Sync>;

/// Like [`init`], and also passes the spans that `filter` admits to `spans`.
pub(crate) fn init_with(format: LogFormat, filter: &str, spans: Option<Spans>) -> Result<(), InitError> {
    // The formatter would report its own errors with `eprintln!`, which panics if standard error is closed.
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => {
            let text = lines.with_writer(TextLines).with_ansi(coloured());
            text.with_filter(FilterFn::new(is_harmless)).boxed()
        }
        LogFormat::Json => {
            let json = lines.with_writer(JsonLines).json().flatten_event(true);
            json.with_filter(FilterFn::new(is_harmless)).boxed()
        }
    };

    let layers: Vec<_> = spans.into_iter().chain([lines]).collect();
    tracing_subscriber::registry().with(layers).with(parse_filter(filter)?).try_init()?;
    panic::set_hook(Box::new(log_panic));

    Ok(())
}

/// Logs a panic as one record. The standard library's own report takes several lines and quotes the panic
/// message unescaped.
fn log_panic(panicked: &PanicHookInfo<'_>) {
    let message = panicked.payload_as_str().unwrap_or("no message");
    let place = panicked.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();

    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(panic = message, place, %backtrace, "a task panicked, which is a defect; please report it");
    } else {
        tracing::error!(panic = message, place, "a task panicked, which is a defect; please report it");
    }
}

/// Parses a filter. Unlike `EnvFilter::new`, refuses invalid parts instead of ignoring them.
pub(crate) fn parse_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(filter)
}

/// Whether a record can be logged without showing secrets. The AMQP client logs whole returned messages as
/// warnings, and logs every frame, including the login's, at level `trace`. From level `debug` on, the
/// export of traces and its HTTP client log the collector's address and answers.
pub(crate) fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let (target, level) = (metadata.target(), *metadata.level());
    match target {
        "lapin::returned_messages" => false,
        _ if target.starts_with("lapin") => level <= Level::DEBUG,
        _ if target.starts_with("opentelemetry") || target.starts_with("hyper") => level <= Level::INFO,
        _ => true,
    }
}

/// <https://no-color.org>
fn coloured() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

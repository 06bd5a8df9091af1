//! Logs, to standard error; and the spans and events that may be shown.

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

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is invalid; the key `log_filter` refuses such a text before.
    #[error("the log filter is invalid; correct log_filter")]
    Filter(#[from] ParseError),
    /// The process has a subscriber already; an embedding application with its own doesn't call [`init`].
    #[error("logging is set up already; set it up once")]
    Twice(#[from] TryInitError),
}

/// Sends every event that `filter` lets pass to standard error. Text is coloured on a terminal only, and
/// never if `NO_COLOR` is set. Whatever the filter allows, records that would show a message or a password
/// are left out. Every record takes one line, whatever its values contain; a panic is a record as well.
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

/// A panic as one record; the standard library's own report takes several lines and quotes its message as it is.
fn log_panic(panicked: &PanicHookInfo<'_>) {
    let message = panicked.payload_as_str().unwrap_or("no message");
    let place = panicked.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();

    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(panic = message, place, %backtrace, "a task panicked: a defect, report it");
    } else {
        tracing::error!(panic = message, place, "a task panicked: a defect, report it");
    }
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

/// <https://no-color.org>
fn coloured() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

//! Logs, to standard error.

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer,
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
    let registry = tracing_subscriber::registry().with(parse_filter(filter)?);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Text => {
            registry.with(layer.with_ansi(coloured()).with_filter(FilterFn::new(is_harmless))).try_init()?
        }
        LogFormat::Json => {
            registry
                .with(layer.json().flatten_event(true).with_filter(FilterFn::new(is_harmless)))
                .try_init()?;
        }
    }
    Ok(())
}

/// Unlike `EnvFilter::new`, refuses what it can't parse instead of dropping it.
pub(crate) fn parse_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(filter)
}

/// The AMQP client logs returned messages whole as a warning, and every frame, the login's too, at the level `trace`.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let (target, level) = (metadata.target(), *metadata.level());
    !target.starts_with("lapin") || target != "lapin::returned_messages" && level <= Level::DEBUG
}

/// <https://no-color.org>
fn coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

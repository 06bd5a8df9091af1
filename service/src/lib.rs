//! What the daemons of document-outbox share.
//!
//! A daemon is a table of [`Key`]s, a function that reads them into its own settings, and a future that serves until
//! it is told to stop. [`Daemon::run`] is the rest of the process: it resolves the [`settings`], starts
//! [`telemetry`], serves probes and metrics over HTTP, listens for the [`shutdown`] signals, and turns the outcome into
//! an exit code.
//!
//! Only [`Connections`] knows MongoDB and RabbitMQ beyond the shape of a URI and of a name.

mod connections;
mod daemon;
mod http;
pub mod keys;
mod log_line;
mod metrics;
mod mongodb_uri;
#[cfg(feature = "otlp")]
mod otlp;
mod passing;
mod probes;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod transport;

pub use connections::Connections;
pub use daemon::{Context, Daemon, Exit};
pub use probes::{Probes, Report};
pub use settings::{
    Glob, Key, Kind, NamespacePattern, Problem, Problems, Program, Reader, Resolution, Resolved, Scheme,
    Sources, Uri,
};
pub use tokio_util::sync::CancellationToken;

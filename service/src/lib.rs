//! Code that the daemons of document-outbox share.
//!
//! A daemon is a table of [`Key`]s, a function that reads them into its own settings, and a future that
//! serves until a stop. [`Daemon::run`] is the rest of the process: it resolves the [`settings`], starts
//! [`telemetry`], serves probes and metrics over HTTP, listens for the [`shutdown`] signals, and turns the
//! outcome into an exit code.
//!
//! All of this needs the feature `daemon` (default). Without it there are only the patterns of namespaces,
//! which the settings of the embedded rescuer and dispatcher use too.
//!
//! Only [`Connections`] knows more of MongoDB and RabbitMQ than the shape of URIs and names.

#[cfg(feature = "daemon")]
mod connections;
#[cfg(feature = "daemon")]
mod daemon;
#[cfg(feature = "daemon")]
mod error_chain;
mod host_name;
#[cfg(feature = "daemon")]
mod http;
#[cfg(feature = "daemon")]
pub mod keys;
#[cfg(feature = "daemon")]
mod log_line;
#[cfg(feature = "daemon")]
mod metrics;
#[cfg(feature = "daemon")]
mod mongodb_uri;
mod namespace;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(feature = "daemon")]
mod passing;
#[cfg(feature = "daemon")]
mod probes;
mod quote;
#[cfg(feature = "daemon")]
pub mod settings;
#[cfg(feature = "daemon")]
mod shell;
#[cfg(feature = "daemon")]
pub mod shutdown;
mod suggestion;
#[cfg(feature = "daemon")]
pub mod telemetry;
#[cfg(feature = "daemon")]
mod traces;
#[cfg(feature = "daemon")]
pub mod transport;

#[cfg(feature = "daemon")]
pub use connections::Connections;
#[cfg(feature = "daemon")]
pub use daemon::Daemon;
pub use host_name::host_name;
pub use namespace::{Glob, InvalidPattern, NamespacePattern, written};
#[cfg(feature = "daemon")]
pub use probes::{Probes, Report};
#[cfg(feature = "daemon")]
pub use settings::{
    Key, Kind, Problem, Problems, Program, Reader, Resolution, Resolved, Scheme, Sources, Uri,
};
#[cfg(feature = "daemon")]
pub use shell::{Context, Exit};
pub use suggestion::did_you_mean;
pub use tokio_util::sync::CancellationToken;

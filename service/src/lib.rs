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

mod host_name;
mod invalid_settings;
mod namespace;
#[cfg(feature = "daemon")]
mod process;
mod quote;
mod suggestion;
mod token_bucket;

pub use host_name::host_name;
pub use invalid_settings::{InvalidSettings, SettingsProblem};
pub use namespace::{Glob, InvalidPattern, NamespacePattern, written};
#[cfg(feature = "daemon")]
pub use process::{
    Connections, Context, Daemon, Exit, Key, Kind, Probes, Problem, Problems, Program, Reader, Report,
    Resolution, Resolved, Scheme, Sources, Uri, keys, settings, shutdown, telemetry, transport,
};
pub use suggestion::did_you_mean;
pub use token_bucket::TokenBucket;
pub use tokio_util::sync::CancellationToken;

//! Code that both services of document-outbox share.
//!
//! A daemon consists of a table of [`Key`]s, a function that reads them into the daemon's own settings,
//! and a future that serves until a stop. [`Daemon::run`] provides the rest of the process: it resolves
//! the [`settings`], starts [`telemetry`], serves probes and metrics over HTTP, listens for the
//! [`shutdown`] signals, and turns the outcome into an exit code.
//!
//! Most of this needs the feature `daemon`, which is on by default. Without the feature, the crate
//! has only the parts that an embedded rescuer or dispatcher uses too, such as the patterns of
//! namespaces.
//!
//! Apart from [`Connections`], the code here knows only the form of the URIs and names of MongoDB and
//! RabbitMQ.

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

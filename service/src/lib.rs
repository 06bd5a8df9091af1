//! What the daemons of document-outbox share.
//!
//! A daemon is a table of [`Key`]s, a function that reads them into its own settings, and a future that serves until
//! it is told to stop. [`Daemon::run`] is the rest of the process: it resolves the [`settings`], starts
//! [`telemetry`], listens for the [`shutdown`] signals, and turns the outcome into an exit code.
//!
//! Nothing here knows MongoDB or RabbitMQ beyond the shape of a URI and of a name.

mod daemon;
pub mod keys;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod transport;

pub use daemon::{Daemon, Exit};
pub use settings::{
    Choice, Key, Kind, NamespacePattern, Problem, Problems, Program, Reader, Resolution, Resolved, Scheme,
    Sources, Uri,
};
pub use tokio_util::sync::CancellationToken;

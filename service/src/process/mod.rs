//! The code behind the feature `daemon`, with which a library runs as a process.

mod connections;
mod daemon;
mod error_chain;
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
mod shell;
pub mod shutdown;
pub mod telemetry;
mod traces;
pub mod transport;

pub use connections::Connections;
pub use daemon::Daemon;
pub use probes::{Probes, Report};
pub use settings::{
    Key, Kind, Problem, Problems, Program, Reader, Resolution, Resolved, Scheme, Sources, Uri,
};
pub use shell::{Context, Exit};

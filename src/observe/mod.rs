//! Observes a running process through events, metrics, traces and health.

pub(crate) mod event;
pub(crate) mod health;
pub mod metrics;
pub(crate) mod repeats;
pub(crate) mod trace;

pub use event::{Event, Events, Shed};
pub use health::{Health, LastError, Snapshot};

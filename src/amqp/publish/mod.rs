//! Publishes in windows, with confirms.

mod backlog;
mod closing;
mod flight;
pub(super) mod publication;
mod publisher;
mod quarantine;
mod refusals;
mod supervisor;
pub(crate) mod window;

pub use publication::{Publication, Published};
pub use publisher::Publisher;

//! Publishing in windows, with confirms.

mod backlog;
mod closing;
mod flight;
pub(super) mod publication;
mod publisher;
mod quarantine;
mod refusals;
mod supervisor;
mod window;

pub use publication::{Publication, Published};
pub use publisher::Publisher;

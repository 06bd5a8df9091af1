//! Commands on their way to the broker, and what was queued lately.

pub(crate) mod ability;
pub(crate) mod commands;
pub(crate) mod read_whole;
pub(crate) mod recently_queued;

//! Commands on their way to the broker, and the documents that were queued lately.

pub(crate) mod read_whole;
pub(crate) mod recently_queued;
pub(crate) mod sender;

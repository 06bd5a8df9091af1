//! Commands in flight to the broker, and recently queued documents.

pub(crate) mod read_whole;
pub(crate) mod recently_queued;
pub(crate) mod sender;

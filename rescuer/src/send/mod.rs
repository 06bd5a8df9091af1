//! Sends commands to the broker, and remembers recently queued documents.

pub(crate) mod read_whole;
pub(crate) mod recently_queued;
pub(crate) mod sender;

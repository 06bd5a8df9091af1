//! Ownership of a stream: a lease, its standbys, and the term of one owner.

pub(crate) mod ability;
pub(crate) mod lease;
pub(crate) mod renewal;
pub(crate) mod server;
pub(crate) mod standby;
pub(crate) mod term;
pub(crate) mod watch;

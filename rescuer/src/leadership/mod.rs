//! Ownership of a stream: the lease, the standbys, and the leadership term of an owner.

pub(crate) mod ability;
pub(crate) mod lease;
pub(crate) mod renewal;
pub(crate) mod server;
pub(crate) mod standby;
pub(crate) mod term;
pub(crate) mod watch;

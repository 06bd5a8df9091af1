//! The sweep, which finds the messages that the change stream missed.

pub(crate) mod backlog_gauge;
pub(crate) mod budget;
pub(crate) mod catalogue;
pub(crate) mod collections;
pub(crate) mod facts;
pub(crate) mod full_sweep;
pub(crate) mod index;
pub(crate) mod query;
pub(crate) mod read;
pub(crate) mod rounds;
pub(crate) mod scan;
pub(crate) mod unwatchable;

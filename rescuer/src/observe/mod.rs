//! Where everything that happens is reported: events, status, series.

pub(crate) mod event;
pub(crate) mod metrics;
pub(crate) mod reminder;
pub(crate) mod status;
pub(crate) mod unsendable;
pub(crate) mod warning;

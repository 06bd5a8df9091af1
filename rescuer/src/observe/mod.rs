//! Reports everything that happens, by events, by the status and by metrics.

pub(crate) mod event;
pub(crate) mod flaws;
pub(crate) mod metrics;
pub(crate) mod reminder;
pub(crate) mod reporter;
pub(crate) mod snapshot;
pub(crate) mod standing;
pub(crate) mod status;
pub(crate) mod unsendable;
pub(crate) mod warning;
pub(crate) mod window;

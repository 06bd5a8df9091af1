//! The state that all streams of a process share.

use std::sync::Arc;

use crate::{leadership::ability::Broker, mongo::Mongo, settings::Settings, sweep::budget::Budget};

#[derive(Clone)]
pub(crate) struct Process {
    /// The name of the process in leases and positions.
    pub(crate) name: Arc<str>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) mongo: Mongo,
    pub(crate) broker: Arc<Broker>,
    /// The budget of queries for the sweeps of all streams together.
    pub(crate) budget: Arc<Budget>,
}

//! What all streams of a process share.

use std::sync::Arc;

use crate::{leadership::ability::Broker, mongo::Mongo, settings::Settings, sweep::budget::Budget};

#[derive(Clone)]
pub(crate) struct Process {
    /// Its name in leases and positions.
    pub(crate) name: Arc<str>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) mongo: Mongo,
    pub(crate) broker: Arc<Broker>,
    /// For the sweeps of all streams together.
    pub(crate) budget: Arc<Budget>,
}

//! Scenarios: which processes act, which faults may strike and how many times, and how far the search goes.

use std::sync::Arc;

use crate::{
    actor::{Actor, AnyActor},
    broken::Broken,
    fault::Fault,
    state::State,
    world::{Fate, Setting, Tick, World},
};

/// A selection of documents, actors and faults, for which the search tries everything that can happen.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub setting: Setting,
    actors: Vec<Arc<dyn AnyActor>>,
    pub faults: Vec<Box<dyn Fault>>,
    /// The maximum number of faults that strike in one run.
    pub strikes: u8,
    /// Whether time passes only when no actor has a step left.
    pub is_prompt: bool,
    /// The number of ticks within which everything must be delivered after the last fault.
    pub within: Tick,
}

impl Scenario {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            setting: Setting { last_tick: 2, ..Setting::default() },
            actors: Vec::new(),
            faults: Vec::new(),
            strikes: 0,
            is_prompt: false,
            within: 8,
        }
    }

    /// Sets the documents, one for each given delivery order.
    #[must_use]
    pub fn documents(mut self, documents: impl IntoIterator<Item = document_outbox::DeliveryOrder>) -> Self {
        self.setting.documents = documents.into_iter().collect();
        self
    }

    /// Adds an actor.
    #[must_use]
    pub fn with(mut self, actor: impl Actor) -> Self {
        self.actors.push(Arc::new(actor));
        self
    }

    /// Adds a fault that may strike.
    #[must_use]
    pub fn fault(mut self, fault: impl Fault + 'static) -> Self {
        self.faults.push(Box::new(fault));
        self
    }

    #[must_use]
    pub fn strikes(mut self, strikes: u8) -> Self {
        self.strikes = strikes;
        self
    }

    /// Sets the last tick at which faults may strike. Only a calm run continues after this tick.
    #[must_use]
    pub fn until(mut self, tick: Tick) -> Self {
        self.setting.last_tick = tick;
        self
    }

    #[must_use]
    pub fn within(mut self, ticks: Tick) -> Self {
        self.within = ticks;
        self
    }

    #[must_use]
    pub fn prompt(mut self) -> Self {
        self.is_prompt = true;
        self
    }

    /// Makes the majority receive each write in a later step than the primary.
    #[must_use]
    pub fn lagging(mut self) -> Self {
        self.setting.is_lagging = true;
        self
    }

    #[must_use]
    pub fn fates(mut self, fates: impl IntoIterator<Item = Fate>) -> Self {
        self.setting.fates = fates.into_iter().collect();
        self
    }

    #[must_use]
    pub fn defers_clears(mut self) -> Self {
        self.setting.defers_clears = true;
        self
    }

    #[must_use]
    pub fn receivers(mut self) -> Self {
        self.setting.has_receivers = true;
        self
    }

    /// Names the actors that never reach the broker.
    #[must_use]
    pub fn without_broker(mut self, names: impl IntoIterator<Item = usize>) -> Self {
        self.setting.without_broker = names.into_iter().collect();
        self
    }

    /// Breaks a rule of the design on purpose.
    #[must_use]
    pub fn broken(mut self, rule: Broken) -> Self {
        self.setting.broken = Some(rule);
        self
    }

    /// The number of actors.
    pub fn actors(&self) -> usize {
        self.actors.len()
    }

    pub fn begin(&self) -> State {
        let world = World::new(self.setting.clone(), self.actors.len());
        State { world, actors: self.actors.clone(), faults_left: self.strikes }
    }
}

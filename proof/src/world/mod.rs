//! The world that the actors share: MongoDB, the broker, the clock, and a ledger of all events. No actor can see the ledger.

mod broker;
mod document;
mod ledger;
mod mongo;
mod state_database;
mod time;

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use document_outbox::DeliveryOrder;

pub use self::{
    broker::{Broker, Command},
    document::{Document, EntryId, Etag, Intent, Stored, Token, due_now, slots, undated, uuid},
    ledger::{Claimed, FALSE_CONFLICT, Ledger, OVERTAKEN, PHANTOM, Told, UNEXCUSED},
    mongo::{Change, Data, Durability, Mongo},
    state_database::{Lease, Position, StateDatabase},
    time::{
        CLAIM_LEASE, DELAY, INLINE_LEASE, OWNERSHIP_LEASE, REQUEUE_PAUSE, TICK, Tick, at, instant, tick_of,
        ticks,
    },
};
use crate::{broken::Broken, name::Name};

/// How the broker treats a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// The broker routes and confirms the message.
    #[default]
    Good,
    /// No queue is bound for the message, so the broker returns and acknowledges it.
    Unroutable,
    /// The broker refuses the message the first time.
    RefusedOnce,
    /// The message can never be published.
    Impossible,
}

/// The settings of a scenario. They never change while the scenario runs.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// The delivery order of each document.
    pub documents: Vec<DeliveryOrder>,
    /// The fates of the messages. The number of a message's intent is its index in this list. The fate of a message beyond the
    /// end of the list is `Good`.
    pub fates: Vec<Fate>,
    /// Whether the majority receives each write in a later step than the primary.
    pub is_lagging: bool,
    /// The rule of the design that is broken on purpose.
    pub broken: Option<Broken>,
    /// The actors that never reach the broker.
    pub without_broker: Vec<Name>,
    /// Whether a delivered message stays in its document until the next save.
    pub defers_clears: bool,
    /// Whether the broker keeps delivered messages for receivers.
    pub has_receivers: bool,
    /// The last tick at which faults may strike. Only a calm run continues after this tick.
    pub last_tick: Tick,
}

/// Everything in a state except the memory of the actors.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub now: Tick,
    pub mongo: Mongo,
    pub broker: Broker,
    pub state_database: StateDatabase,
    pub ledger: Ledger,
    pub setting: Shared,
}

/// The settings that all states of a scenario share. They are equal in all states, so hashes leave them out.
#[derive(Debug, Clone)]
pub struct Shared(pub Arc<Setting>);

impl PartialEq for Shared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Shared {}

impl Hash for Shared {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl World {
    pub fn new(setting: Setting, actors: usize) -> Self {
        Self {
            now: 0,
            mongo: Mongo::new(setting.documents.len(), actors, setting.is_lagging),
            broker: Broker::new(&setting.without_broker),
            state_database: StateDatabase::default(),
            ledger: Ledger::default(),
            setting: Shared(Arc::new(setting)),
        }
    }

    pub fn is_broken(&self, rule: Broken) -> bool {
        self.setting.0.broken == Some(rule)
    }

    pub fn ordering(&self, document: usize) -> DeliveryOrder {
        self.setting.0.documents.get(document).copied().unwrap_or_default()
    }

    pub fn fate(&self, id: EntryId) -> Fate {
        self.setting.0.fates.get(usize::from(id.intent)).copied().unwrap_or_default()
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {
        self.now += 1;
        self.broker.expire(self.now);
    }

    /// Delivers a message to the broker.
    pub fn arrives(&mut self, document: usize, id: EntryId, claimed: Claimed) {
        let is_committed = self.mongo.majority.has_sent(id);
        let before = self.before(document, id);
        self.ledger.arrives(id, claimed, self.now, is_committed, &before);
        if self.setting.0.has_receivers {
            self.broker.copies.push(id);
        }
    }

    /// Returns the messages of a document that must be delivered before this message and have not arrived.
    fn before(&self, document: usize, id: EntryId) -> Vec<EntryId> {
        let ordering = self.ordering(document);
        if ordering == DeliveryOrder::Unordered {
            return Vec::new();
        }

        let mut before = Vec::new();
        for stored in &self.mongo.primary.documents[document].outbox {
            if stored.id == id {
                break;
            }
            let blocks = match stored.dead {
                Some(_) => ordering == DeliveryOrder::DeadBlocks,
                None => !stored.is_scheduled(self.now),
            };
            if blocks && !self.ledger.has_arrived(stored.id) {
                before.push(stored.id);
            }
        }
        before
    }

    /// Notes that something failed. From now on, a published message may arrive again if the majority does not have the write
    /// that clears the message.
    pub fn doubt_all(&mut self) {
        let uncleared = |data: &Data| -> Vec<EntryId> { data.entries().map(|stored| stored.id).collect() };
        let both = [uncleared(&self.mongo.primary), uncleared(&self.mongo.majority)];
        for id in both.into_iter().flatten() {
            self.ledger.doubt(id);
        }
    }
}

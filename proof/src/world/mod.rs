//! The world that the actors share: MongoDB, the broker, the clock, and a ledger of what happened that no process can see.

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

/// What a broker, or a receiver, makes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// It is routed and confirmed.
    #[default]
    Good,
    /// No queue is bound for it: it is returned, and acknowledged.
    Unroutable,
    /// It is refused the first time.
    RefusedOnce,
    /// It can never be published.
    Impossible,
}

/// What doesn't change in a scenario.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// How each document keeps order.
    pub documents: Vec<DeliveryOrder>,
    /// The fate of messages, by the number of their intent; of others, they are good.
    pub fates: Vec<Fate>,
    /// The majority has a write only after a step of its own.
    pub is_lagging: bool,
    /// The rule that is not kept.
    pub broken: Option<Broken>,
    /// Processes that never reach the broker.
    pub without_broker: Vec<Name>,
    /// A delivered message stays for the next save of its document.
    pub defers_clears: bool,
    /// Delivered messages are kept for receivers.
    pub has_receivers: bool,
    /// Time passes until then, before the calm.
    pub last_tick: Tick,
}

/// Everything but the memory of the actors.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub now: Tick,
    pub mongo: Mongo,
    pub broker: Broker,
    pub state_database: StateDatabase,
    pub ledger: Ledger,
    pub setting: Shared,
}

/// The part that all states of a scenario share, and no hash need know of.
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

    /// Time passes.
    pub fn tick(&mut self) {
        self.now += 1;
        self.broker.expire(self.now);
    }

    /// A message reaches the broker.
    pub fn arrives(&mut self, document: usize, id: EntryId, claimed: Claimed) {
        let is_committed = self.mongo.majority.has_sent(id);
        let before = self.before(document, id);
        self.ledger.arrives(id, claimed, self.now, is_committed, &before);
        if self.setting.0.has_receivers {
            self.broker.copies.push(id);
        }
    }

    /// The messages of a document that must be delivered before this one, and were not.
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

    /// Something failed: messages that are published and not durably cleared may be repeated.
    pub fn doubt_all(&mut self) {
        let uncleared = |data: &Data| -> Vec<EntryId> { data.entries().map(|stored| stored.id).collect() };
        let both = [uncleared(&self.mongo.primary), uncleared(&self.mongo.majority)];
        for id in both.into_iter().flatten() {
            self.ledger.doubt(id);
        }
    }
}

//! A receiver with an inbox. The receiver takes a message, saves the effect together with a record of the message, and then
//! acknowledges the message.

use document_outbox::Inbox;

use crate::{
    actor::{Actor, Blow, Name},
    broken::Broken,
    faults::{answer_lost::ANSWER_LOST, crash::CRASH},
    world::{Document, Durability, EntryId, Etag, World, uuid},
};

/// A receiver. Its aggregate is one document.
#[derive(Debug, Clone, Hash)]
pub struct Receiver {
    aggregate: usize,
    /// The number of the last save.
    number: u8,
    phase: ReceiverPhase,
}

#[derive(Debug, Clone, Hash)]
enum ReceiverPhase {
    Idle,
    Loaded(EntryId, Document),
    /// The primary has the save of the effect, but the majority doesn't have it yet.
    Wait(EntryId),
    Saved(EntryId),
}

/// The steps of a receiver.
#[derive(Debug)]
pub enum ReceiverStep {
    /// Takes the message at this index of `Broker::copies`, and loads the aggregate.
    Take(usize),
    Save,
    Learn,
    Acknowledge,
}

impl Receiver {
    pub fn new(aggregate: usize) -> Self {
        Self { aggregate, number: 0, phase: ReceiverPhase::Idle }
    }

    fn load(&self, id: EntryId, world: &World) -> ReceiverPhase {
        ReceiverPhase::Loaded(id, world.mongo.primary.documents[self.aggregate].clone())
    }

    fn save(&mut self, id: EntryId, mut loaded: Document, me: Name, world: &mut World) -> ReceiverPhase {
        let etag: Option<Etag> = loaded.etag;
        let mut inbox = Inbox::default();
        for received in &loaded.received {
            inbox.receive(uuid(*received));
        }
        let is_new = inbox.receive(uuid(id)) || world.is_broken(Broken::NoInbox);
        if !is_new {
            return ReceiverPhase::Saved(id);
        }

        loaded.received.push(id);
        loaded.effects.push(id.intent);
        self.number += 1;
        loaded.etag = Some((me, self.number));
        let aggregate = self.aggregate;
        let is_saved = world.mongo.write(me, |data| {
            let stored = &mut data.documents[aggregate];
            let is_same = stored.etag == etag;
            if is_same {
                *stored = loaded;
            }
            is_same
        });
        if is_saved {
            return ReceiverPhase::Wait(id);
        }
        world.mongo.forget(me);
        self.load(id, world)
    }
}

impl Actor for Receiver {
    type Step = ReceiverStep;

    fn steps(&self, me: Name, world: &World) -> Vec<ReceiverStep> {
        match &self.phase {
            ReceiverPhase::Idle => (0..world.broker.copies.len()).map(ReceiverStep::Take).collect(),
            ReceiverPhase::Loaded(..) => vec![ReceiverStep::Save],
            ReceiverPhase::Wait(_) if world.mongo.last_write(me) == Durability::Pending => Vec::new(),
            ReceiverPhase::Wait(_) => vec![ReceiverStep::Learn],
            ReceiverPhase::Saved(_) => vec![ReceiverStep::Acknowledge],
        }
    }

    fn take(&mut self, step: ReceiverStep, me: Name, world: &mut World) {
        self.phase = match (step, std::mem::replace(&mut self.phase, ReceiverPhase::Idle)) {
            (ReceiverStep::Take(copy), ReceiverPhase::Idle) => {
                let id = world.broker.copies.remove(copy);
                self.load(id, world)
            }
            (ReceiverStep::Save, ReceiverPhase::Loaded(id, loaded)) => self.save(id, loaded, me, world),
            (ReceiverStep::Learn, ReceiverPhase::Wait(id)) => {
                let is_lost = world.mongo.last_write(me) == Durability::RolledBack;
                world.mongo.forget(me);
                if is_lost { self.load(id, world) } else { ReceiverPhase::Saved(id) }
            }
            (ReceiverStep::Acknowledge, ReceiverPhase::Saved(_)) => ReceiverPhase::Idle,
            (_, phase) => phase,
        };
    }

    fn strike(&mut self, blow: Blow, me: Name, world: &mut World) -> bool {
        let id = match (blow, &self.phase) {
            (CRASH, ReceiverPhase::Loaded(id, _) | ReceiverPhase::Saved(id))
            | (CRASH | ANSWER_LOST, ReceiverPhase::Wait(id)) => *id,
            _ => return false,
        };
        world.mongo.forget(me);
        world.broker.copies.push(id);
        self.phase = ReceiverPhase::Idle;
        true
    }
}

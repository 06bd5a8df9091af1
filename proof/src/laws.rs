//! The promises of docs/guarantees.md, as far as a model can check them.

use document_outbox::DeliveryOrder;

use crate::world::{Data, Told, World};
pub use crate::world::{FALSE_CONFLICT, OVERTAKEN, PHANTOM, UNEXCUSED};

pub const P1_ATOMIC: &str = "P1 a change and its message exist together";
pub const P1_PHANTOM: &str = "P1 no message of a save that the majority does not have";
pub const P1_ANSWER: &str = "P1 a save gets a true answer, and takes effect once";
pub const P2_LOSS: &str = "P2 P8 a committed message is in its outbox until the broker has it";
pub const P3_WINDOWS: &str = "P3 a repeated message has a named reason";
pub const P3_ONCE: &str = "P3 without faults every message arrives once";
pub const P3_EFFECT: &str = "P3 with an inbox every message takes effect once";
pub const P4_ORDER: &str = "P4 no message overtakes an earlier one";
pub const P5_CALM: &str = "P5 P7 when faults end, everything arrives in bounded time";
pub const P7_LOW_WATER: &str = "P7 a position never passes a change whose commands are not confirmed";
pub const P6_CONFLICT: &str = "P6 a save conflicts only with another save";

/// Whether, in each document, the intents that took effect are exactly the intents whose messages were saved. Documents of
/// receivers are left out.
pub fn is_atomic(data: &Data) -> bool {
    for (number, document) in data.documents.iter().enumerate() {
        if !document.received.is_empty() {
            continue;
        }
        let sent = data.sent().filter(|(document, _)| *document == number);
        let mut sent: Vec<_> = sent.map(|(_, id)| id.intent).collect();
        let mut effects = document.effects.clone();
        sent.sort_unstable();
        effects.sort_unstable();
        if sent != effects {
            return false;
        }
    }
    true
}

/// Whether the position has passed only changes that the ledger counts as dealt with. A sweep could still find a document whose
/// change the position has skipped, but such a skip breaks this law anyway.
pub fn position_is_low_water(world: &World) -> bool {
    world.state_database.position.is_none_or(|position| position.behind <= world.ledger.dealt_with)
}

fn count(data: &Data, intent: u8) -> usize {
    let effects = data.documents.iter().filter(|document| document.received.is_empty());
    effects.flat_map(|document| &document.effects).filter(|effect| **effect == intent).count()
}

/// Whether each save that was reported as applied took effect, no save that was reported as refused took effect, and no save took
/// effect twice.
pub fn answers_are_true(world: &World) -> bool {
    let primary = &world.mongo.primary;
    let is_twice = |effect: &u8| count(primary, *effect) > 1;
    if primary.documents.iter().flat_map(|document| &document.effects).any(is_twice) {
        return false;
    }

    world.ledger.told().all(|(intent, told)| match told {
        Told::Applied => count(&world.mongo.majority, intent) == 1,
        Told::Refused => count(primary, intent) == 0,
        Told::Unknown => true,
    })
}

pub fn nothing_is_lost(world: &World) -> bool {
    let majority = &world.mongo.majority;
    majority
        .sent()
        .all(|(_, id)| world.ledger.has_arrived(id) || majority.entries().any(|stored| stored.id == id))
}

pub fn effects_are_single(world: &World) -> bool {
    let receiving = world.mongo.primary.documents.iter().filter(|document| !document.received.is_empty());
    receiving.into_iter().all(|document| {
        let mut effects = document.effects.clone();
        effects.sort_unstable();
        effects.windows(2).all(|two| two[0] != two[1])
    })
}

/// Whether no work is left: every entry that is still in an outbox is dead, or waits behind a dead entry that blocks the
/// document.
pub fn is_drained(world: &World) -> bool {
    if world.mongo.is_behind() || !world.broker.copies.is_empty() {
        return false;
    }
    let documents = &world.mongo.primary.documents;
    (0..documents.len()).all(|number| is_document_drained(number, world))
}

fn is_document_drained(number: usize, world: &World) -> bool {
    for stored in &world.mongo.primary.documents[number].outbox {
        if stored.dead.is_none() {
            return false;
        }
        // The entries behind this dead entry wait for an operator.
        if world.ordering(number) == DeliveryOrder::DeadBlocks {
            return true;
        }
    }
    true
}

//! A writer that doesn't use the library. Its entries may have no dates, or dates in the future.

use crate::{
    actor::{Actor, Name},
    world::{Change, EntryId, Intent, Stored, Tick, World},
};

/// The kind of entry that the writer pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dated {
    /// An entry without a creation date and without a due date.
    Undated,
    /// An entry with a creation date and without a due date.
    Made,
    /// An entry that is due at this tick.
    Scheduled(Tick),
    /// An entry that is due at once. The writer doesn't deliver it, so a worker has to.
    Now,
}

/// A writer of entries.
#[derive(Debug, Clone, Hash)]
pub struct Stranger {
    wishes: Vec<(usize, Intent, Dated)>,
    done: usize,
}

/// Pushes the next entry.
#[derive(Debug)]
pub struct Push;

impl Stranger {
    pub fn new(wishes: impl IntoIterator<Item = (usize, Intent, Dated)>) -> Self {
        Self { wishes: wishes.into_iter().collect(), done: 0 }
    }
}

impl Actor for Stranger {
    type Step = Push;

    fn steps(&self, _: Name, _: &World) -> Vec<Push> {
        if self.done < self.wishes.len() { vec![Push] } else { Vec::new() }
    }

    fn take(&mut self, _: Push, me: Name, world: &mut World) {
        let (document, intent, dated) = self.wishes[self.done];
        self.done += 1;

        let (id, now) = (EntryId { intent, again: 0 }, world.now);
        let mut stored = Stored::new(id, now);
        match dated {
            Dated::Undated => (stored.created, stored.available) = (None, None),
            Dated::Made => stored.available = None,
            Dated::Scheduled(at) => stored.available = Some(at),
            Dated::Now => {}
        }

        let number = u8::try_from(self.done).unwrap_or(u8::MAX);
        world.mongo.also(|data| {
            let changed = &mut data.documents[document];
            changed.outbox.push(stored);
            changed.effects.push(intent);
            changed.etag = Some((me, number));
            data.changes.push(Change::saved(document, now, id));
        });
    }
}

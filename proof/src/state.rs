//! A state of the model: the world and all actors.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use crate::{
    actor::{AnyActor, Name},
    world::World,
};

/// A state of the world and of all actors.
#[derive(Debug, Clone)]
pub struct State {
    pub world: World,
    pub actors: Vec<Arc<dyn AnyActor>>,
    /// How many faults may still strike.
    pub faults_left: u8,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.world.hash(hasher);
        for actor in &self.actors {
            actor.hash_into(hasher);
        }
        self.faults_left.hash(hasher);
    }
}

/// Compares two states by their fingerprints, as the checker does.
impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint() == other.fingerprint()
    }
}

impl State {
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    pub fn uses_broker(&self, name: Name) -> bool {
        self.actors.get(name).is_some_and(|actor| actor.has_connection())
    }

    /// Lets an actor take one of its steps.
    pub fn take(&mut self, actor: Name, step: usize) {
        let Some(taking) = self.actors.get(actor).cloned() else { return };
        self.actors[actor] = taking.after(step, actor, &mut self.world);
    }
}

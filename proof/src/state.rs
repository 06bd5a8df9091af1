//! A state of the world and of everybody in it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use crate::{
    actor::{AnyActor, Name},
    world::World,
};

/// A state of everything.
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

/// By their fingerprints, as the checker compares all others.
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

    /// Has an actor take a step.
    pub fn take(&mut self, actor: Name, step: usize) {
        let Some(taking) = self.actors.get(actor).cloned() else { return };
        self.actors[actor] = taking.after(step, actor, &mut self.world);
    }
}

//! The secondaries of a replica set. They may copy the data of the primary at any time.

use crate::{
    actor::{Actor, Name},
    world::World,
};

/// The secondaries.
#[derive(Debug, Clone, Hash)]
pub struct ReplicaSet;

/// Copies all data of the primary to the majority.
#[derive(Debug)]
pub struct Replicate;

impl Actor for ReplicaSet {
    type Step = Replicate;

    fn steps(&self, _: Name, world: &World) -> Vec<Replicate> {
        if world.mongo.is_behind() { vec![Replicate] } else { Vec::new() }
    }

    fn take(&mut self, _: Replicate, _: Name, world: &mut World) {
        world.mongo.replicate();
    }
}

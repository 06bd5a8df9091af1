//! Lost connections to the broker, which are restored.

use crate::{
    actor::{Actor, Name},
    world::World,
};

/// The supervisors of all connections.
#[derive(Debug, Clone, Hash)]
pub struct Network;

/// Restores every lost connection, apart from those that the scenario keeps down.
#[derive(Debug)]
pub struct Reconnect;

impl Actor for Network {
    type Step = Reconnect;

    fn steps(&self, _: Name, world: &World) -> Vec<Reconnect> {
        if world.broker.is_cut() { vec![Reconnect] } else { Vec::new() }
    }

    fn take(&mut self, _: Reconnect, _: Name, world: &mut World) {
        world.broker.reconnect();
    }
}

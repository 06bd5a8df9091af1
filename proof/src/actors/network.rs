//! The repair of lost connections to the broker.

use crate::{
    actor::{Actor, Name},
    world::World,
};

/// The supervisors that restore the connections of all actors.
#[derive(Debug, Clone, Hash)]
pub struct Network;

/// Restores every lost connection, except the connections that the scenario keeps down.
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

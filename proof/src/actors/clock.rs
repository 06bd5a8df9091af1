//! The passing of time. Time may pass between any two steps, so the search also finds what happens if a process is very slow.

use crate::{
    actor::{Actor, Name},
    world::World,
};

/// The clock of the server, and of all processes.
#[derive(Debug, Clone, Hash)]
pub struct Clock;

/// Lets one tick pass.
#[derive(Debug)]
pub struct Pass;

impl Actor for Clock {
    type Step = Pass;

    fn steps(&self, _: Name, world: &World) -> Vec<Pass> {
        if world.now < world.setting.0.last_tick { vec![Pass] } else { Vec::new() }
    }

    fn take(&mut self, _: Pass, _: Name, world: &mut World) {
        world.tick();
    }
}

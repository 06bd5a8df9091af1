//! Time, which passes whenever it likes: every process can be as slow as it may be.

use crate::{
    actor::{Actor, Name},
    world::World,
};

/// The clock of the server, and of all processes.
#[derive(Debug, Clone, Hash)]
pub struct Clock;

/// One tick.
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

//! A sender of superfluous commands, which may be early, late, repeated or forged. A command grants nothing, so superfluous
//! commands must be harmless.

use crate::{
    actor::{Actor, Name},
    world::World,
};

/// A sender that queues a limited number of commands for one document.
#[derive(Debug, Clone, Hash)]
pub struct Waker {
    document: usize,
    left: u8,
}

/// Queues a command.
#[derive(Debug)]
pub struct Wake;

impl Waker {
    pub fn new(document: usize, commands: u8) -> Self {
        Self { document, left: commands }
    }
}

impl Actor for Waker {
    type Step = Wake;

    fn steps(&self, _: Name, _: &World) -> Vec<Wake> {
        if self.left > 0 { vec![Wake] } else { Vec::new() }
    }

    fn take(&mut self, _: Wake, _: Name, world: &mut World) {
        self.left -= 1;
        world.broker.queue(self.document, world.now);
    }
}

//! Commands that are not needed: early, late, repeated or forged ones, at any moment. They grant nothing and must be harmless.

use crate::{
    actor::{Actor, Name},
    world::World,
};

/// Sends that many commands for one document.
#[derive(Debug, Clone, Hash)]
pub struct Waker {
    document: usize,
    left: u8,
}

/// A command is queued.
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

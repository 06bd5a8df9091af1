//! The broker: a queue of commands, the messages that no receiver has acknowledged, and the connections of the actors.

use super::{document::EntryId, time::Tick};
use crate::name::Name;

/// How long a command waits in the queue before it expires. The default of the programs is five minutes; this value is short, so
/// that commands expire in the model.
const EXPIRES_AFTER: Tick = 2;

/// A command that asks a worker to deliver the messages of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Command {
    pub document: usize,
    expires: Tick,
}

/// The broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Broker {
    pub commands: Vec<Command>,
    /// Messages that no receiver has acknowledged.
    pub copies: Vec<EntryId>,
    /// The actors whose connections are down, one bit for each actor.
    down: u32,
    /// The actors whose connections stay down, one bit for each actor.
    never: u32,
}

impl Broker {
    pub fn new(never: &[Name]) -> Self {
        let never = never.iter().fold(0, |all, name| all | 1 << name);
        Self { commands: Vec::new(), copies: Vec::new(), down: never, never }
    }

    pub fn reaches(&self, name: Name) -> bool {
        self.down & 1 << name == 0
    }

    /// Cuts the connection of an actor. Returns false if the connection was already down.
    pub fn cut(&mut self, name: Name) -> bool {
        let was_up = self.reaches(name);
        self.down |= 1 << name;
        was_up
    }

    pub fn is_cut(&self) -> bool {
        self.down != self.never
    }

    pub fn reconnect(&mut self) {
        self.down = self.never;
    }

    pub fn queue(&mut self, document: usize, now: Tick) {
        self.commands.push(Command { document, expires: now + EXPIRES_AFTER });
    }

    /// Puts a command back at the head of the queue.
    pub fn requeue(&mut self, command: Command) {
        self.commands.insert(0, command);
    }

    pub fn expire(&mut self, now: Tick) {
        self.commands.retain(|command| command.expires > now);
    }
}

//! The state database. Its writes wait for the majority before their writer believes them, so it is modelled as what the majority
//! has: a write of which that is not known yet is one that has not taken its step.

use super::time::Tick;
use crate::name::Name;

/// The lease of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    pub owner: Option<Name>,
    pub epoch: u8,
    /// None if it was released.
    pub until: Option<Tick>,
    /// One that stands by and can send commands, and until when its word counts.
    pub able: Option<(Name, Tick)>,
}

/// The position of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// How many changes lie before it.
    pub behind: u8,
    pub epoch: u8,
    /// Whether it is usable: history may be lost.
    pub is_of_use: bool,
}

/// Lease and position.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct StateDatabase {
    pub lease: Lease,
    pub position: Option<Position>,
}

impl StateDatabase {
    /// Moves a position on. False where it is gone, or another has a higher epoch.
    pub fn save(&mut self, behind: u8, epoch: u8) -> bool {
        self.position.is_some() && self.take(behind, epoch)
    }

    /// Writes a position where there is none of a higher epoch, as a new owner does.
    pub fn take(&mut self, behind: u8, epoch: u8) -> bool {
        if self.position.is_some_and(|position| position.epoch > epoch) {
            return false;
        }
        self.position = Some(Position { behind, epoch, is_of_use: true });
        true
    }
}

//! The state database. A rescuer counts a write as done only once the majority has the write, so the model stores only the data
//! of the majority. While the majority does not have a write, the model treats the write as not yet begun.

use super::time::Tick;
use crate::name::Name;

/// The lease on the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    pub owner: Option<Name>,
    pub epoch: u8,
    /// The tick at which the lease ends, or `None` if the lease was released.
    pub until: Option<Tick>,
    /// The standby rescuer that last reported that it can send commands, and the tick at which this report expires.
    pub able: Option<(Name, Tick)>,
}

/// The position of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The time in the oplog of the last change that the position has passed.
    pub behind: u8,
    pub epoch: u8,
    /// Whether the oplog still reaches back to the position.
    pub is_of_use: bool,
}

/// The contents of the state database: the lease and the position.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct StateDatabase {
    pub lease: Lease,
    pub position: Option<Position>,
}

impl StateDatabase {
    /// Moves the saved position forward. Returns false if the position is gone or has a higher epoch.
    pub fn save(&mut self, behind: u8, epoch: u8) -> bool {
        self.position.is_some() && self.take(behind, epoch)
    }

    /// Writes a position, even if none is saved, as a new owner does. Returns false if the saved position has a higher epoch.
    pub fn take(&mut self, behind: u8, epoch: u8) -> bool {
        if self.position.is_some_and(|position| position.epoch > epoch) {
            return false;
        }
        self.position = Some(Position { behind, epoch, is_of_use: true });
        true
    }
}

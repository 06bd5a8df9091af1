//! The stream's position is lost, or the oplog no longer reaches back to the position.

use crate::{actor::Name, fault::Fault, state::State};

/// The loss of the stored position, or of the part of the oplog that begins at the position.
#[derive(Debug)]
pub struct PositionLost;

impl Fault for PositionLost {
    fn name(&self) -> &'static str {
        "position lost"
    }

    fn targets(&self, _: &State) -> Vec<Name> {
        vec![0, 1]
    }

    fn strike(&self, target: Name, state: &mut State) -> bool {
        let position = &mut state.world.state_database.position;
        match position {
            None => false,
            Some(_) if target == 1 => {
                *position = None;
                true
            }
            Some(position) => {
                let was_of_use = position.is_of_use;
                position.is_of_use = false;
                was_of_use
            }
        }
    }
}

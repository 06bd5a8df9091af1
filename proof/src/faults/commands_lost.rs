//! The queue of commands is purged, or is lost together with the broker.

use crate::{actor::Name, fault::Fault, state::State};

/// Removes all queued commands.
#[derive(Debug)]
pub struct CommandsLost;

impl Fault for CommandsLost {
    fn name(&self) -> &'static str {
        "commands lost"
    }

    fn targets(&self, _: &State) -> Vec<Name> {
        vec![0]
    }

    fn strike(&self, _: Name, state: &mut State) -> bool {
        let had_any = !state.world.broker.commands.is_empty();
        state.world.broker.commands.clear();
        had_any
    }
}

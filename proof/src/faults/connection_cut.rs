//! The connection of one process to the broker is lost until the network restores it.

use crate::{
    actor::Name,
    fault::{Fault, all_actors},
    state::State,
};

/// The loss of a connection.
#[derive(Debug)]
pub struct ConnectionCut;

impl Fault for ConnectionCut {
    fn name(&self) -> &'static str {
        "connection cut"
    }

    fn targets(&self, state: &State) -> Vec<Name> {
        all_actors(state)
    }

    fn strike(&self, target: Name, state: &mut State) -> bool {
        let was_up = state.uses_broker(target) && state.world.broker.cut(target);
        if was_up {
            state.world.doubt_all();
        }
        was_up
    }
}

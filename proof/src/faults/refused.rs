//! The server refuses a whole command, for example because credentials were revoked.

use crate::{
    actor::{Blow, Name},
    fault::{Fault, all_actors, strike_actor},
    state::State,
};

/// The name of this fault for an actor.
pub const REFUSED: Blow = "refused";

/// The refusal of a command.
#[derive(Debug)]
pub struct Refused;

impl Fault for Refused {
    fn name(&self) -> &'static str {
        REFUSED
    }

    fn targets(&self, state: &State) -> Vec<Name> {
        all_actors(state)
    }

    fn strike(&self, target: Name, state: &mut State) -> bool {
        strike_actor(REFUSED, target, state)
    }
}

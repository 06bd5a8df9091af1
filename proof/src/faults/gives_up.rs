//! A caller has no answer by its deadline, and stops waiting.

use crate::{
    actor::{Blow, Name},
    fault::{Fault, all_actors, strike_actor},
    state::State,
};

/// The name of this fault for an actor.
pub const GIVES_UP: Blow = "gives up";

/// The end of a wait for a write at its deadline.
#[derive(Debug)]
pub struct GivesUp;

impl Fault for GivesUp {
    fn name(&self) -> &'static str {
        GIVES_UP
    }

    fn targets(&self, state: &State) -> Vec<Name> {
        all_actors(state)
    }

    fn strike(&self, target: Name, state: &mut State) -> bool {
        strike_actor(GIVES_UP, target, state)
    }
}

//! A caller has no answer by its deadline.

use crate::{
    actor::{Blow, Name},
    fault::{Fault, all_actors, strike_actor},
    state::State,
};

/// The blow.
pub const GIVES_UP: Blow = "gives up";

/// The time of a write is over.
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

//! The server refuses a command as a whole, as when credentials were revoked.

use crate::{
    actor::{Blow, Name},
    fault::{Fault, all_actors, strike_actor},
    state::State,
};

/// The name of this fault for an actor.
pub const REFUSED: Blow = "refused";

/// A command is refused.
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

//! A process is killed: all that it had in memory is gone, and it starts again.

use crate::{
    actor::{Blow, Name},
    fault::{Fault, all_actors, strike_actor},
    state::State,
};

/// The blow.
pub const CRASH: Blow = "crash";

/// A process is killed.
#[derive(Debug)]
pub struct Crash;

impl Fault for Crash {
    fn name(&self) -> &'static str {
        CRASH
    }

    fn targets(&self, state: &State) -> Vec<Name> {
        all_actors(state)
    }

    fn strike(&self, target: Name, state: &mut State) -> bool {
        strike_actor(CRASH, target, state)
    }
}

//! A process is killed and started again. Everything in its memory is lost.

use crate::{
    actor::{Blow, Name},
    fault::{Fault, all_actors, strike_actor},
    state::State,
};

/// The name of this fault for an actor.
pub const CRASH: Blow = "crash";

/// The crash of a process.
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

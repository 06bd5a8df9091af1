//! The answer to a write is lost, although the server may have executed the write.

use crate::{
    actor::{Blow, Name},
    fault::{Fault, all_actors, strike_actor},
    state::State,
};

/// The name of this fault for an actor.
pub const ANSWER_LOST: Blow = "answer lost";

/// The loss of the answer to a write.
#[derive(Debug)]
pub struct AnswerLost;

impl Fault for AnswerLost {
    fn name(&self) -> &'static str {
        ANSWER_LOST
    }

    fn targets(&self, state: &State) -> Vec<Name> {
        all_actors(state)
    }

    fn strike(&self, target: Name, state: &mut State) -> bool {
        strike_actor(ANSWER_LOST, target, state)
    }
}

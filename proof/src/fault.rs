//! The faults of a scenario.

use std::fmt::Debug;

use crate::{actor::Name, state::State};

/// A fault. The scenario limits how many faults strike in total.
pub trait Fault: Debug + Send + Sync {
    /// The name of the fault.
    fn name(&self) -> &'static str;

    /// The actors that the fault could strike. The search tries each of these actors; [`strike`](Self::strike) returns false for
    /// an actor on which the fault has no effect.
    fn targets(&self, state: &State) -> Vec<Name>;

    /// Strikes a target. Returns false if the fault has no effect.
    fn strike(&self, target: Name, state: &mut State) -> bool;
}

/// Every actor of a state.
pub fn all_actors(state: &State) -> Vec<Name> {
    (0..state.actors.len()).collect()
}

/// Strikes one actor. Returns false if the fault has no effect.
pub fn strike_actor(blow: crate::actor::Blow, target: Name, state: &mut State) -> bool {
    let Some(actor) = state.actors.get(target).cloned() else { return false };
    let Some(after) = actor.struck(blow, target, &mut state.world) else { return false };

    state.actors[target] = after;
    true
}

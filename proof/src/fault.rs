//! What goes wrong.

use std::fmt::Debug;

use crate::{actor::Name, state::State};

/// Something that can go wrong, as often as a scenario allows for all faults together.
pub trait Fault: Debug + Send + Sync {
    /// How it is called.
    fn name(&self) -> &'static str;

    /// Whom or what it can strike: each is tried. Those on which it has no effect are left out by [`strike`](Self::strike).
    fn targets(&self, state: &State) -> Vec<Name>;

    /// Strikes; false when it has no effect.
    fn strike(&self, target: Name, state: &mut State) -> bool;
}

/// Every actor of a state.
pub fn all_actors(state: &State) -> Vec<Name> {
    (0..state.actors.len()).collect()
}

/// Has a blow strike one actor.
pub fn strike_actor(blow: crate::actor::Blow, target: Name, state: &mut State) -> bool {
    let Some(actor) = state.actors.get(target).cloned() else { return false };
    let Some(after) = actor.struck(blow, target, &mut state.world) else { return false };

    state.actors[target] = after;
    true
}

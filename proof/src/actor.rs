//! Who acts in the model: a process with a memory of its own, or a part of the world that moves by itself.

use std::{
    fmt::Debug,
    hash::{Hash, Hasher},
    sync::Arc,
};

pub use crate::name::Name;
use crate::world::World;

/// A blow that strikes an actor from outside, by its name.
pub type Blow = &'static str;

/// A process, or a part of the world that moves by itself.
///
/// One step is one thing that others can see: a write, a message, an answer. What happens between two of them in one memory
/// belongs to the first.
pub trait Actor: Clone + Debug + Hash + Send + Sync + 'static {
    /// What it can do.
    type Step: Debug;

    /// The steps it can take now. The first is the one it takes when all goes well.
    fn steps(&self, me: Name, world: &World) -> Vec<Self::Step>;

    /// Does it.
    fn take(&mut self, step: Self::Step, me: Name, world: &mut World);

    /// Whether it has a connection to the broker.
    fn uses_broker(&self) -> bool {
        false
    }

    /// A fault strikes it; false when it has no effect.
    fn strike(&mut self, blow: Blow, me: Name, world: &mut World) -> bool {
        let _ = (blow, me, world);
        false
    }
}

/// An actor of any kind, as a part of a state.
pub trait AnyActor: Debug + Send + Sync {
    /// How many steps it can take now.
    fn count(&self, me: Name, world: &World) -> usize;

    /// What the step of that number is.
    fn describe(&self, step: usize, me: Name, world: &World) -> String;

    /// The actor after that step.
    fn after(&self, step: usize, me: Name, world: &mut World) -> Arc<dyn AnyActor>;

    /// The actor after a blow; none when that has no effect.
    fn struck(&self, blow: Blow, me: Name, world: &mut World) -> Option<Arc<dyn AnyActor>>;

    /// Whether it has a connection to the broker.
    fn has_connection(&self) -> bool;

    /// Adds it to a hash.
    fn hash_into(&self, hasher: &mut dyn Hasher);
}

impl<A: Actor> AnyActor for A {
    fn count(&self, me: Name, world: &World) -> usize {
        self.steps(me, world).len()
    }

    fn describe(&self, step: usize, me: Name, world: &World) -> String {
        let steps = self.steps(me, world);
        let kind = std::any::type_name::<A>().rsplit("::").next().unwrap_or_default();
        format!("{kind} {me}: {:?}", steps.get(step))
    }

    fn after(&self, step: usize, me: Name, world: &mut World) -> Arc<dyn AnyActor> {
        let mut after = self.clone();
        let mut steps = self.steps(me, world);
        if step < steps.len() {
            after.take(steps.swap_remove(step), me, world);
        }
        Arc::new(after)
    }

    fn struck(&self, blow: Blow, me: Name, world: &mut World) -> Option<Arc<dyn AnyActor>> {
        let mut after = self.clone();
        if after.strike(blow, me, world) { Some(Arc::new(after)) } else { None }
    }

    fn has_connection(&self) -> bool {
        self.uses_broker()
    }

    fn hash_into(&self, mut hasher: &mut dyn Hasher) {
        self.hash(&mut hasher);
    }
}

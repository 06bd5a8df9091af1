//! Actors of the model. An actor is a process with its own memory, or a part of the world that changes by itself.

use std::{
    fmt::Debug,
    hash::{Hash, Hasher},
    sync::Arc,
};

pub use crate::name::Name;
use crate::world::World;

/// The name of a fault that strikes an actor.
pub type Blow = &'static str;

/// A process, or a part of the world that changes by itself.
///
/// One step is one thing that others can observe: a write, a message or an answer. All work that a process does in its own memory
/// after such a thing, and before the next one, belongs to the same step.
pub trait Actor: Clone + Debug + Hash + Send + Sync + 'static {
    /// A step that the actor can take.
    type Step: Debug;

    /// The steps that the actor can take now. The first step of the list is the step that the actor takes when nothing fails.
    fn steps(&self, me: Name, world: &World) -> Vec<Self::Step>;

    /// Takes a step.
    fn take(&mut self, step: Self::Step, me: Name, world: &mut World);

    /// Whether the actor has a connection to the broker.
    fn uses_broker(&self) -> bool {
        false
    }

    /// Lets a fault strike the actor. Returns false if the fault has no effect.
    fn strike(&mut self, blow: Blow, me: Name, world: &mut World) -> bool {
        let _ = (blow, me, world);
        false
    }
}

/// An actor of any kind, as a part of a state.
pub trait AnyActor: Debug + Send + Sync {
    /// The number of steps that the actor can take now.
    fn count(&self, me: Name, world: &World) -> usize;

    /// Describes the step with this number.
    fn describe(&self, step: usize, me: Name, world: &World) -> String;

    /// Returns the actor after the step with this number.
    fn after(&self, step: usize, me: Name, world: &mut World) -> Arc<dyn AnyActor>;

    /// Returns the actor after a fault, or `None` if the fault has no effect.
    fn struck(&self, blow: Blow, me: Name, world: &mut World) -> Option<Arc<dyn AnyActor>>;

    /// Whether the actor has a connection to the broker.
    fn has_connection(&self) -> bool;

    /// Adds the actor to a hash.
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

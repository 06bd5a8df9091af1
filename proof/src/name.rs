//! Names of actors.

/// The name of an actor: its index in the list of the scenario's actors.
pub type Name = usize;

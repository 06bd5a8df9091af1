//! How actors are named.

/// The place of an actor among those of its scenario.
pub type Name = usize;

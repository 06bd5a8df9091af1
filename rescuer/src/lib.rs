//! The rescuer.

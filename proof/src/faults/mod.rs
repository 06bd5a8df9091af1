//! The faults, one file each.

pub mod answer_lost;
pub mod commands_lost;
pub mod connection_cut;
pub mod crash;
pub mod failover;
pub mod gives_up;
pub mod position_lost;
pub mod refused;

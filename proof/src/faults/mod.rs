//! The faults. Each fault has its own file.

pub mod answer_lost;
pub mod commands_lost;
pub mod connection_cut;
pub mod crash;
pub mod failover;
pub mod gives_up;
pub mod position_lost;
pub mod refused;

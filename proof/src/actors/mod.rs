//! The actors, one file each.

pub mod clock;
pub mod courier;
pub mod network;
pub mod receiver;
pub mod replica_set;
pub mod rescuer;
pub mod rescuer_term;
pub mod saver;
pub mod stranger;
pub mod waker;
pub mod worker;

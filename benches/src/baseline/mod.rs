//! The baselines, which are well-written versions of the code that people write without this library. Every
//! baseline is as fast as its own guarantees allow.

mod batched_loop;
mod by_hand;
mod careful_loop;
mod change_stream;
mod classic;
mod concern;
mod dual_write;
mod fed_loop;
mod repeatable;
mod updates;

pub(crate) use batched_loop::BatchedLoop;
pub(crate) use by_hand::{ByHand, Safety};
pub(crate) use careful_loop::CarefulLoop;
pub(crate) use change_stream::count_changes;
pub(crate) use classic::Classic;
pub(crate) use concern::majority;
pub(crate) use dual_write::{Confirmed, DualWrite};
pub(crate) use fed_loop::FedLoop;

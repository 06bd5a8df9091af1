//! Another primary is elected. Writes that the majority didn't have are lost.

use crate::{actor::Name, fault::Fault, state::State};

/// The election of another primary.
#[derive(Debug)]
pub struct Failover;

impl Fault for Failover {
    fn name(&self) -> &'static str {
        "failover"
    }

    fn targets(&self, _: &State) -> Vec<Name> {
        vec![0]
    }

    fn strike(&self, _: Name, state: &mut State) -> bool {
        state.world.doubt_all();
        state.world.mongo.fail_over()
    }
}

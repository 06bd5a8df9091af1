//! The write concern of the baselines.

use mongodb::options::{Acknowledgment, WriteConcern};

pub(crate) fn majority() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).build()
}

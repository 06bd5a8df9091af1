//! The write concern that a baseline promises with.

use mongodb::options::{Acknowledgment, WriteConcern};

pub(crate) fn majority() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).build()
}

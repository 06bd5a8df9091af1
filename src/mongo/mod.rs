//! How MongoDB is asked: writes, reads and clears in batches, the server's clock, and what its errors mean.

pub(crate) mod batch;
pub(crate) mod batching;
pub(crate) mod clears;
pub(crate) mod clock;
pub(crate) mod concern;
pub(crate) mod door;
pub mod error_codes;
mod find;
pub(crate) mod group_commit;
pub(crate) mod majority;
pub(crate) mod reads;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod runtime;
pub(crate) mod session;
pub(crate) mod statement;
pub(crate) mod write;

pub(crate) use self::{
    clears::ClearOutcome,
    door::{Mongo, MongoSettings},
    reads::StoredOutbox,
    statement::{Delete, Delivered, Find, Insert, Update, Upsert},
    write::WriteOutcome,
};

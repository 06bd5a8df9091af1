//! Access to MongoDB. The only [entry point](door::Mongo) takes statements as values. The other modules send writes,
//! reads and clears in batches, follow the server's clock, and classify the server's errors.

pub(crate) mod batching;
pub(crate) mod clears;
pub(crate) mod clock;
pub(crate) mod concern;
pub(crate) mod deadline;
pub(crate) mod departure;
pub(crate) mod door;
pub(crate) mod doubt;
pub mod error_codes;
mod find;
pub(crate) mod group_commit;
#[cfg(feature = "testing")]
pub(crate) mod in_memory;
mod local_update;
pub(crate) mod majority;
mod plain_write;
pub(crate) mod reads;
pub(crate) mod reply;
mod retryable_write;
pub(crate) mod runtime;
pub(crate) mod session;
pub(crate) mod statement;
mod write_command;
mod write_request;

pub(crate) use self::{
    door::{Backend, Mongo, MongoSettings},
    reads::StoredOutbox,
    statement::{
        ClearOutcome, Delete, Delivered, Find, Insert, Operators, Overtaken, Update, Upsert, WriteOutcome,
    },
};

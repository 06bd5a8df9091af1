//! The files of the library's `src/mongo/` that the schedules need.

#[path = "../../src/mongo/statement.rs"]
pub(crate) mod statement;

pub(crate) use self::statement::{Delivered, Overtaken};

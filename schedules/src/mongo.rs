//! Of `src/mongo/`.

#[path = "../../src/mongo/statement.rs"]
pub(crate) mod statement;

pub(crate) use self::statement::{Delivered, Overtaken};

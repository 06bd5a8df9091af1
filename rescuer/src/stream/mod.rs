//! The change stream, read with the delay.

pub(crate) mod age;
pub(crate) mod change;
pub(crate) mod filter;
pub(crate) mod follow;
pub(crate) mod inline_share;
pub(crate) mod low_water;
pub(crate) mod oplog;
pub(crate) mod page;
pub(crate) mod position;
pub(crate) mod reader;
pub(crate) mod set_aside;
pub(crate) mod settled;
pub(crate) mod start;
pub(crate) mod token;

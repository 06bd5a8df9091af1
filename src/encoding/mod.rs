//! Converts values to BSON and JSON, and back, without loss.

pub(crate) mod bytes;
pub(crate) mod codec;
mod driver_bson;
pub(crate) mod extended_json;
pub(crate) mod one_line;
pub(crate) mod payload;
pub(crate) mod raw;
pub(crate) mod salvage;

//! Wraps the functions that have different names in the driver's two BSON versions.
//!
//! The whole build decides which BSON version the driver uses: version 3 if any crate turns on the feature `bson-3` of
//! `mongodb`, otherwise version 2. This crate cannot query the features of another crate, so a choice by its own
//! features could be wrong and would not compile. Instead, name resolution makes the choice. A glob import inside a
//! function takes precedence over the functions of the surrounding module, so a name means the driver's function if the
//! driver has it, and otherwise the function below.
//!
//! Everything else that this crate uses from `mongodb::bson` is the same in both versions.

#![allow(
    dead_code,
    unused_imports,
    clippy::implicit_clone,
    clippy::redundant_closure_for_method_calls,
    clippy::wildcard_imports,
    reason = "with each BSON version, some of the names below are unused"
)]

use serde::{Serialize, de::DeserializeOwned};

const UNKNOWN: &str = "the driver uses neither BSON 2 nor BSON 3";

/// Encodes a value that is a document at its top level.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    use mongodb::bson::*;
    serialize_to_vec(value).map_err(|error| error.to_string())
}

/// Decodes a value from a document's bytes.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    use mongodb::bson::*;
    deserialize_from_slice(bytes).map_err(|error| error.to_string())
}

/// Replaces the BSON 3 function when the driver uses BSON 2.
fn serialize_to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    use mongodb::bson::*;
    to_vec(value).map_err(|error| error.to_string())
}

/// Replaces the BSON 3 function when the driver uses BSON 2.
fn deserialize_from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    use mongodb::bson::*;
    from_slice(bytes).map_err(|error| error.to_string())
}

/// Replaces the BSON 2 function when the driver uses BSON 3. Never called.
fn to_vec<T: Serialize>(_value: &T) -> Result<Vec<u8>, &'static str> {
    Err(UNKNOWN)
}

/// Replaces the BSON 2 function when the driver uses BSON 3. Never called.
fn from_slice<T: DeserializeOwned>(_bytes: &[u8]) -> Result<T, &'static str> {
    Err(UNKNOWN)
}

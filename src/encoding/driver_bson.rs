//! The functions that the two BSON versions of the driver name differently.
//!
//! The whole build decides which version the driver speaks: with `bson-3` of `mongodb` turned on by any crate, it is 3. This
//! crate cannot ask for a feature of another, so a choice by its own features could be wrong, and would not compile. Here the
//! compiler chooses, by what is there. A function's glob import comes before the functions of the module around it; so a name
//! means the driver's function if the driver has one, and otherwise the function below.
//!
//! Everything else that this crate uses of `mongodb::bson` is the same in both.

#![allow(
    dead_code,
    unused_imports,
    clippy::implicit_clone,
    clippy::redundant_closure_for_method_calls,
    clippy::wildcard_imports,
    reason = "each version leaves some of the names below to the other"
)]

use serde::{Serialize, de::DeserializeOwned};

const UNKNOWN: &str = "the driver speaks neither BSON 2 nor BSON 3";

/// The bytes of a value that is a document at its top level.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    use mongodb::bson::*;
    serialize_to_vec(value).map_err(|error| error.to_string())
}

/// The value of a document's bytes.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    use mongodb::bson::*;
    deserialize_from_slice(bytes).map_err(|error| error.to_string())
}

/// Of BSON 3; with BSON 2 this.
fn serialize_to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    use mongodb::bson::*;
    to_vec(value).map_err(|error| error.to_string())
}

/// Of BSON 3; with BSON 2 this.
fn deserialize_from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    use mongodb::bson::*;
    from_slice(bytes).map_err(|error| error.to_string())
}

/// Of BSON 2; never called with BSON 3.
fn to_vec<T: Serialize>(_value: &T) -> Result<Vec<u8>, &'static str> {
    Err(UNKNOWN)
}

/// Of BSON 2; never called with BSON 3.
fn from_slice<T: DeserializeOwned>(_bytes: &[u8]) -> Result<T, &'static str> {
    Err(UNKNOWN)
}

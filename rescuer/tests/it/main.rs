//! Tests the real rescuer with a real MongoDB. Most tests record the commands instead of sending them to a
//! broker.
//!
//! Run `eval "$(scripts/services env)"` before these tests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "counts and settings, exact as floats")]

mod broker;
mod docs;
mod fail_point;
mod lease;
#[path = "../../../tests/support/network.rs"]
mod network;
#[path = "../../../tests/support/odd_ids.rs"]
mod odd_ids;
#[path = "../../../tests/support/on_panic.rs"]
mod on_panic;
mod oplog;
mod patterns;
mod position;
#[path = "../../../tests/support/private_broker.rs"]
mod private_broker;
#[path = "../../../tests/support/private_mongod.rs"]
mod private_mongod;
mod process;
mod secrets;
mod status;
mod stream;
mod support;
mod sweep;
mod warnings;

#[path = "../../../tests/support/configuration.rs"]
mod configuration;
#[path = "../../../tests/support/isolation.rs"]
mod isolation;
#[path = "../../../tests/support/secrets.rs"]
mod world;

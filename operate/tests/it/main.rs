//! Tests the operations with a real MongoDB and a real RabbitMQ.
//!
//! Needs `eval "$(scripts/services env)"`.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod act;
mod doctor;
mod evidence;
mod explain;
mod failures;
mod groups;
mod interleaved;
mod list;
#[path = "../../../tests/support/on_panic.rs"]
mod on_panic;
mod read_only;
mod scene;
mod status;

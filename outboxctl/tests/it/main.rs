//! Tests the command line: its screens, which the documentation shows, and its process.
//!
//! Needs `eval "$(scripts/services env)"`.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../../../tests/support/on_panic.rs"]
mod on_panic;
mod process;
mod screens;

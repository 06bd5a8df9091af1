//! Properties of generated documents on a real MongoDB. Run `eval "$(scripts/services env)"` before these tests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

mod deferring;
mod deliveries;
mod elements;
mod filters;
#[path = "../properties/generated.rs"]
mod generated;
mod revising;
mod server;

#[path = "../../../tests/support/on_panic.rs"]
mod on_panic;

//! Tests the worker on a real broker and a real database.
//!
//! Tests that break a server are in [`outage`], and tests that set a fail point of MongoDB are in
//! [`fail_point`]. .config/nextest.toml and scripts/test recognise them by these modules, and keep other
//! tests from running at the same time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "what tests count is small"
)]
#![allow(clippy::similar_names, reason = "`receiver` and `received` belong together")]

mod ability;
mod binary;
mod commands;
mod crash;
mod docs;
mod fail_point;
mod fixture;
mod outage;
mod rate;
mod scene;
mod secrets;
mod status;
mod watchdog;

#[path = "../../../tests/support/configuration.rs"]
mod configuration;
#[path = "../../../tests/support/isolation.rs"]
mod isolation;
#[path = "../../../tests/support/network.rs"]
mod network;
#[path = "../../../tests/support/odd_ids.rs"]
mod odd_ids;
#[path = "../../../tests/support/on_panic.rs"]
mod on_panic;
#[path = "../../../tests/support/private_broker.rs"]
mod private_broker;
#[path = "../../../tests/support/mod.rs"]
mod support;
#[path = "../../../tests/support/secrets.rs"]
mod world;

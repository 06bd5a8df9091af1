//! Tests the library and the whole flow on real servers.
//!
//! Tests that break a server are in modules named `outage`, tests that set a fail point of MongoDB are in
//! `fail_point`, and tests that boot servers with passwords and TLS are in `secured`. .config/nextest.toml
//! and scripts/test recognise these tests by their modules, and keep other tests from running at the same
//! time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]
#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]

mod amqp;
#[cfg(feature = "schemars")]
mod asyncapi;
mod await_confirm;
mod broker_outage;
#[cfg(feature = "testing")]
mod contract;
mod dead_blocks;
mod deferred_clears;
mod deliver;
mod deploy;
mod derives;
mod docs;
mod examples;
mod generated_values;
mod group_commit;
mod hot_document;
mod in_process;
mod inline;
mod majority;
mod metrics;
mod operations;
mod readme;
mod receive;
mod revisions;
mod saga;
mod scheduled;
mod secured;
mod shop_screens;
mod side_by_side;
#[cfg(feature = "testing")]
mod statements;
mod store;
#[cfg(feature = "testing")]
mod test_kit;
#[cfg(feature = "opentelemetry")]
mod traces;
mod whole_flow;

#[cfg(feature = "testing")]
#[path = "../support/backends.rs"]
mod backends;
#[path = "../support/dying.rs"]
mod dying;
#[path = "../support/flow.rs"]
mod flow;
#[path = "../support/generator.rs"]
mod generator;
#[path = "../support/isolation.rs"]
mod isolation;
#[path = "../support/network.rs"]
mod network;
#[path = "../support/on_panic.rs"]
mod on_panic;
#[path = "../support/private_broker.rs"]
mod private_broker;
#[path = "../support/private_mongod.rs"]
mod private_mongod;
#[path = "../support/receiving.rs"]
mod receiving;
#[path = "../support/restricted.rs"]
mod restricted;
#[path = "../support/secured.rs"]
mod secured_servers;
#[path = "../support/standalone.rs"]
mod standalone;
#[path = "../support/mod.rs"]
mod support;

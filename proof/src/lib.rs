//! A model of document-outbox for a model checker: what happens if any process, server or connection fails at any moment?
//!
//! # Flow
//! A [scenario](scenario::Scenario) names the documents, the [actors] and the [faults] that may strike, and how often. The
//! [model](model::OutboxModel) lets every actor take any of its steps in every order, with a fault anywhere between, and time
//! passing whenever it likes. In each state that can be reached so, the [laws] must hold; they are the promises P1 to P8 of
//! docs/guarantees.md. From each state a [calm](calm::Calm) run must deliver everything in bounded time.
//!
//! The model covers the world: documents that a majority has or not yet, a broker that confirms or not, memory that is lost.
//! Its decisions are made by the code: [`deliverable`](document_outbox::internal::deliverable),
//! [`settlement`](document_outbox::internal::settlement), [`judge`](outbox_rescuer::internal::judge) and others are the
//! functions that the programs run, and no copies of them.
//!
//! # Guarantees
//! Within the bounds of a scenario the search is complete: no order of steps is left out.
//!
//! # Caveats
//! - The bounds are small: a few messages, two of a kind of process, one to three faults. Errors that need more are not found.
//! - Writes to MongoDB are modelled by hand, with the conditions that ARCHITECTURE.md states for them.
//! - The model does not cover the drivers, of sizes and limits, or of the time that anything takes apart from leases and delays.
//!
//! # Adding to it
//! An actor is a file in `actors/`, a fault a file in `faults/`, each with its `mod` line. A scenario names those that it uses.

#![allow(missing_docs, reason = "a crate of the project alone; what a name does not say is documented")]

pub mod actor;
pub mod actors;
pub mod broken;
pub mod calm;
pub mod fault;
pub mod faults;
pub mod laws;
pub mod model;
pub mod name;
pub mod proof;
pub mod scenario;
pub mod scenarios;
pub mod state;
pub mod targets;
pub mod world;

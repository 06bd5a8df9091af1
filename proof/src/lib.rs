//! A model of document-outbox for a model checker: what happens if any process, server or connection fails at any moment?
//!
//! # Flow
//! A [scenario](scenario::Scenario) names the documents, the [actors], and the [faults] that may strike, and limits how many
//! faults strike. The [model](model::OutboxModel) lets every actor take any of its steps in any order, lets time pass between any
//! two steps, and lets a fault strike at any moment. In each state that the search reaches, the [laws] must hold. The laws are
//! the promises P1 to P8 of docs/guarantees.md. From each state, a [calm](calm::Calm) run must deliver everything in bounded
//! time.
//!
//! The model itself describes the world: documents that the majority has or does not have yet, a broker that confirms a message
//! or does not, and memory that is lost. The decisions are made by [`deliverable`](document_outbox::internal::deliverable),
//! [`settlement`](document_outbox::internal::settlement), [`judge`](outbox_rescuer::internal::judge) and other functions. The
//! model calls these functions of the library and of the rescuer directly, and has no copies of them.
//!
//! # Guarantees
//! Within the bounds of a scenario the search is complete: no order of steps is left out.
//!
//! # Caveats
//! - The bounds are small: a few messages, at most two processes of each kind, and at most three faults. The search does not find
//!   an error that needs more messages, processes or faults.
//! - Writes to MongoDB are modelled by hand, with the conditions that ARCHITECTURE.md states for these writes.
//! - The model covers neither the drivers nor sizes and limits. Of all durations it covers only leases and delays.
//!
//! # Adding to it
//! An actor is one file in `actors/`, and a fault is one file in `faults/`. Each file needs a `mod` line in the `mod.rs` of its
//! folder. A scenario names the actors and faults that it uses.

#![allow(missing_docs, reason = "only this project uses the crate; comments add to the names")]

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

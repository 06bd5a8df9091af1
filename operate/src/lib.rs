//! The operator's core of document-outbox: typed operations on the outboxes in MongoDB and on the broker.
//!
//! A face for people, such as `outboxctl`, calls these operations and shows their results. So each face can do what the
//! others can. This crate has no terminal and no HTTP. It depends on the stored form and on the library's pure
//! functions, and on no aggregate.
//!
//! | question | operation |
//! |---|---|
//! | How much is in the outboxes, and who delivers it? | [`status`] |
//! | Which messages are these? | [`list`], with a [`query`] |
//! | What exactly is this message? | [`message`] |
//! | What is in this document, and what blocks what? | [`document`] |
//! | Why is this message not delivered now? | [`explain`] |
//! | Which failures are there? | [`groups`] |
//! | Is everything set up as it must be? | [`doctor`] |
//! | Which delay keeps my objective? | [`advise`] |
//! | Replay, discard, restore, kill, release; who did that? | [`act`] |
//!
//! # Guarantees
//! - Only [`act`] writes. Every query has a time limit.
//! - Memory is bounded: documents are read with cursors, one page at a time.
//! - `deliverable()` of the library decides what may be delivered; this crate only explains its answers.
//!
//! # Caveats
//! - The answers are not a snapshot: deliveries continue while a page is read.
//! - Reads from a secondary may be older than reads from the primary.

#![cfg_attr(test, allow(clippy::pedantic, reason = "these lints apply to product code, not to tests"))]

pub mod act;
pub mod advise;
pub mod catalogue;
pub mod doctor;
pub mod document;
pub mod error;
pub mod explain;
pub mod find;
pub mod groups;
pub mod lease;
pub mod list;
pub mod message;
pub mod operator;
pub mod query;
pub mod redact;
pub mod state;
pub mod status;
pub mod streams;
pub mod text;

pub use error::OperateError;
pub use operator::{Operator, OperatorSettings, ReadFrom};
pub use query::{Query, QueryError};
pub use state::MessageState;

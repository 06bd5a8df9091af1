//! Errors of operations, in sentences that say what to do.

use document_outbox::internal::error_codes;
use mongodb::{Namespace, error::ErrorKind};

use crate::query::QueryError;

/// The server's code for a query that reached its time limit.
const OUT_OF_TIME: i32 = 50;
/// The server's code for a missing privilege.
const UNAUTHORISED: i32 = 13;

/// Why an operation has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperateError {
    /// The query can't be read.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// An argument has a wrong form; the text is a sentence.
    #[error("{0}")]
    Argument(String),
    /// There is no such thing; the text is a sentence.
    #[error("{0}")]
    NotFound(String),
    /// The operation is refused, because it could do damage; the text is a sentence.
    #[error("{0}")]
    Forbidden(String),
    /// A token of a page belongs to another query, or is damaged.
    #[error("the page token {0}; start without it")]
    PageToken(&'static str),
    /// No index serves the query.
    #[error(
        "no index serves this query in {namespace}: {reason}. To read the whole collection (about {documents} documents), allow a scan (--scan)"
    )]
    NeedsScan {
        /// The collection.
        namespace: Namespace,
        /// Why there is no index for it.
        reason: String,
        /// The estimated number of documents.
        documents: u64,
    },
    /// A query reached its time limit.
    #[error("{what} took longer than the time limit: narrow the query, or raise the limit (--max-time)")]
    OutOfTime {
        /// What was read.
        what: String,
    },
    /// The user lacks a privilege.
    #[error(
        "MongoDB refuses this user {what}: grant the role outboxViewer of deploy/roles, or outboxOperator for acts ({said})"
    )]
    Refused {
        /// What was read.
        what: String,
        /// The server's text.
        said: String,
    },
    /// MongoDB failed in another way.
    #[error("{what} failed: {said}")]
    MongoDb {
        /// What was read.
        what: String,
        /// The driver's text.
        said: String,
    },
}

impl OperateError {
    /// The error of a read; `what` names the thing that was read.
    pub(crate) fn reading(what: impl Into<String>) -> impl FnOnce(mongodb::error::Error) -> Self {
        let what = format!("reading {}", what.into());
        move |error| Self::of_mongodb(what, &error)
    }

    pub(crate) fn of_mongodb(what: String, error: &mongodb::error::Error) -> Self {
        match error_codes::code(error) {
            Some(OUT_OF_TIME) => Self::OutOfTime { what },
            Some(UNAUTHORISED) => Self::Refused { what, said: name_of(error) },
            _ => Self::MongoDb { what, said: error_codes::describe(error) },
        }
    }
}

/// The server's name for an error. The services' advice for missing privileges would be wrong here.
fn name_of(error: &mongodb::error::Error) -> String {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => command.code_name.clone(),
        _ => "unauthorised".to_owned(),
    }
}

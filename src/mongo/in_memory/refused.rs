//! Why the in-memory database refuses a statement.

use mongodb::{bson::doc, error::Error as DriverError};

use crate::mongo::reply::write_error;

/// A value has the wrong form for its operator.
pub(super) const BAD_VALUE: i32 = 2;
/// A statement can't be parsed.
pub(super) const FAILED_TO_PARSE: i32 = 9;
/// A value has the wrong type for its operator.
pub(super) const TYPE_MISMATCH: i32 = 14;
/// A path leads through a value that has no fields.
pub(super) const PATH_NOT_VIABLE: i32 = 28;
/// Two operators write the same path.
pub(super) const CONFLICTING_OPERATORS: i32 = 40;
/// The `_id` has a field whose name begins with `$`.
pub(super) const DOLLAR_IN_ID: i32 = 52;
/// The `_id` has a type that no `_id` can have.
pub(super) const INVALID_ID: i32 = 53;
/// A path has an empty part.
pub(super) const EMPTY_FIELD_NAME: i32 = 56;
/// An update would change the `_id`.
pub(super) const IMMUTABLE_FIELD: i32 = 66;
/// The in-memory database doesn't interpret a part of the statement.
const NOT_IMPLEMENTED: i32 = 238;
/// A document is larger than a server stores.
pub(super) const TOO_LARGE: i32 = 10334;
/// A document with this `_id` exists.
pub(super) const DUPLICATE_KEY: i32 = 11000;

/// Why a statement was refused, with the code that a server reports for it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refused {
    code: i32,
    text: String,
}

impl Refused {
    pub(super) fn new(code: i32, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// The refusal of a part of a statement that only a real server interprets.
    pub(super) fn not_interpreted(what: impl std::fmt::Display) -> Self {
        let text = format!(
            "the in-memory database of the test kit does not interpret {what}; run this test on a real MongoDB server"
        );
        Self { code: NOT_IMPLEMENTED, text }
    }
}

/// The error that the driver returns for the same refusal by a server.
impl From<Refused> for DriverError {
    fn from(refused: Refused) -> Self {
        let Refused { code, text } = refused;
        match write_error(&doc! { "index": 0, "code": code, "errmsg": text }) {
            Ok(error) | Err(error) => error,
        }
    }
}

//! The errors of a store, with what to do about each.

use crate::{
    mongo::{
        error_codes::{self, Verdict},
        runtime,
    },
    stored::document_ref::DocumentRef,
};

/// Why an operation of a store failed. Unless the variant says otherwise, nothing was written.
///
/// The text doesn't include the [source](std::error::Error::source), which is the error from MongoDB or the driver. Log
/// the whole chain, as error reporters do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `update` found no document.
    #[error("{document} does not exist")]
    NotFound {
        /// The document.
        document: DocumentRef,
    },
    /// Every attempt of `update` conflicted with another writer. Try later, or spread the writes over more documents.
    #[error("another writer changed {document} during each of {tries} attempts; nothing was written")]
    Contended {
        /// The document.
        document: DocumentRef,
        /// Number of attempts.
        tries: u32,
    },
    /// The write got no clear answer and **may have happened**. Load the document before you repeat the write.
    #[error("{document}: the write got no clear answer and may have happened; load the document to find out")]
    Unknown {
        /// The document.
        document: DocumentRef,
        /// The driver's error.
        source: mongodb::error::Error,
    },
    /// MongoDB could not be reached, so the write was not sent. Repeat the call later.
    #[error("MongoDB could not be reached; nothing was written")]
    Unavailable(#[source] mongodb::error::Error),
    /// MongoDB refused the operation and would refuse it again.
    #[error("MongoDB refused the operation; nothing was written")]
    Refused(#[source] mongodb::error::Error),
    /// The outbox would have more entries than its cap allows, because its messages are not delivered as fast as they
    /// are sent.
    #[error(
        "{document}: the outbox has {held} entries, and {sent} more would exceed the cap of {cap}; find out why the messages are not delivered"
    )]
    OutboxFull {
        /// The document.
        document: DocumentRef,
        /// Number of entries in the outbox.
        held: usize,
        /// Number of messages to add.
        sent: usize,
        /// The limit.
        cap: usize,
    },
    /// A message's payload, headers or key are larger than the cap. Send a reference to the content instead.
    #[error(
        "message `{message_type}`: the size of the {what} is {bytes} bytes, but the cap is {cap}; send a reference to the content instead"
    )]
    MessageTooLarge {
        /// The message's type.
        message_type: String,
        /// `payload`, `headers` or `key`.
        what: &'static str,
        /// The size in bytes.
        bytes: usize,
        /// The limit.
        cap: usize,
    },
    /// A payload is nested deeper than its cap allows.
    #[error("message `{message_type}`: the payload is nested deeper than {cap} levels")]
    NestedTooDeep {
        /// The message's type.
        message_type: String,
        /// The limit.
        cap: usize,
    },
    /// A message's type is empty or too long for a routing key.
    #[error("message type `{message_type}` must have between 1 and 255 bytes")]
    MessageType {
        /// The refused type.
        message_type: String,
    },
    /// The document would be larger than its cap allows, or larger than the server accepts.
    #[error("{document} would have {bytes} bytes with its outbox, but the cap is {cap}")]
    DocumentTooLarge {
        /// The document.
        document: DocumentRef,
        /// The size that the document would have.
        bytes: usize,
        /// The limit.
        cap: usize,
    },
    /// The stored field `outbox` is not an array.
    #[error("{document}: cannot add messages to the outbox")]
    OutboxNotArray {
        /// The document.
        document: DocumentRef,
        /// The type that `outbox` has instead of an array.
        source: crate::stored::entry::NotAnArray,
    },
    /// A value could not be turned into BSON.
    #[error("{what} cannot be encoded: {reason}")]
    Encode {
        /// The document or message.
        what: String,
        /// The reason.
        reason: String,
    },
    /// A stored document does not fit the aggregate's struct.
    #[error("{document} cannot be decoded: {reason}")]
    Decode {
        /// The document.
        document: DocumentRef,
        /// The reason, which names the field.
        reason: String,
    },
    /// The aggregate writes a field that belongs to the library.
    #[error(
        "field `{field}` is reserved for the library; rename the aggregate's field, or mark its outbox `#[serde(skip)]`"
    )]
    ReservedField {
        /// `etag` or `outbox`.
        field: &'static str,
    },
    /// The name of a changed field cannot be used in an update.
    #[error(
        "field `{field}`: MongoDB cannot update a field whose name is empty, begins with `$` or holds a dot"
    )]
    FieldName {
        /// The field.
        field: String,
    },
    /// The aggregate's `_id`, or a field of its shard key, was changed after the load.
    #[error(
        "{document}: `{field}` was {was} when it was loaded and is {is} now; insert a new document instead"
    )]
    IdChanged {
        /// The document.
        document: DocumentRef,
        /// `_id`, or the field of the shard key.
        field: String,
        /// The field's value when the aggregate was loaded.
        was: String,
        /// The field's value now.
        is: String,
    },
    /// The aggregate's encoding has no `_id`, so MongoDB would generate an `_id` that the aggregate doesn't know.
    #[error(
        "the aggregate's `id()` is {id}, but its encoding has no `_id`, so nothing was written: mark the id field `#[serde(rename = \"_id\")]`; if the id is an `Option`, set it before the insert"
    )]
    NoId {
        /// The result of `id()`.
        id: String,
    },
    /// The aggregate's `id()` differs from the `_id` in its encoding.
    #[error(
        "the aggregate's `id()` is {id}, but it encodes {encoded} as `_id`, so nothing was written: return the field `_id` from `id()`; if that field has a custom serde encoding, implement the encoding on the field's type instead"
    )]
    IdMismatch {
        /// The result of `id()`, encoded by its own type.
        id: String,
        /// The `_id` in the aggregate's encoding.
        encoded: String,
    },
    /// The encoded aggregate could not be decoded as the same struct.
    #[error(
        "{document}: the encoded aggregate cannot be decoded as its own struct, so nothing was written: {reason}"
    )]
    Unreadable {
        /// The document.
        document: DocumentRef,
        /// The reason, which names the field.
        reason: String,
    },
    /// Inside a changed field there is a stored field that the struct doesn't know and that can't be written back.
    #[error(
        "nothing was written: field `{field}` is unknown to the struct, and it is not valid UTF-8, so it cannot be written back; repair or remove that field in the stored document"
    )]
    UnreadableField {
        /// The field's path.
        field: String,
    },
    /// Messages for the caller's own update can't cancel, reschedule or replace stored messages.
    #[error("{what} needs a save through the store; the caller's own update can only add messages")]
    NotStaged {
        /// What was asked for.
        what: &'static str,
    },
    /// The caller's update already touches fields that the library writes.
    #[error("the update already writes `{path}`; only the library may write `outbox` and `etag`")]
    UpdateTouchesOutbox {
        /// The conflicting path.
        path: String,
    },
}

impl Error {
    /// Whether the same call, unchanged, may succeed later. False for [`Error::Unknown`], which requires loading the
    /// document first.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contended { .. } | Self::OutboxFull { .. })
    }

    /// Creates the error for an encoded aggregate that cannot be read.
    pub(crate) fn of_encoding(error: impl std::fmt::Display) -> Self {
        Self::Encode { what: "the document".into(), reason: error.to_string() }
    }

    /// Converts an error of a write to this document.
    pub(crate) fn of_write(document: &DocumentRef, source: mongodb::error::Error, bytes: usize) -> Self {
        if error_codes::is_unencodable(&source) {
            return Self::Encode { what: document.to_string(), reason: source.kind.to_string() };
        }
        match error_codes::verdict(&source) {
            Verdict::NotSent => Self::Unavailable(runtime::explain(source)),
            Verdict::Unknown => Self::Unknown { document: document.clone(), source },
            Verdict::TooLarge => Self::DocumentTooLarge { document: document.clone(), bytes, cap: 16 << 20 },
            Verdict::Refused | Verdict::Duplicate => Self::Refused(source),
        }
    }

    /// Converts an error of a read.
    pub(crate) fn of_read(source: mongodb::error::Error) -> Self {
        match error_codes::verdict(&source) {
            Verdict::Refused => Self::Refused(source),
            _ => Self::Unavailable(runtime::explain(source)),
        }
    }
}

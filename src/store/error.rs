//! The errors of a store, and what to do about each.

use crate::{
    mongo::{
        error_codes::{self, Verdict},
        runtime,
    },
    stored::document_ref::DocumentRef,
};

/// Why a store failed. Unless the variant says otherwise, nothing was written.
///
/// It prints itself without its [source](std::error::Error::source), which is the answer of MongoDB or the
/// driver. Log the chain of both, as error reporters do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `update` found no document.
    #[error("{document} does not exist")]
    NotFound {
        /// Which.
        document: DocumentRef,
    },
    /// `update` conflicted with another writer every time. Try later, or spread the writes over more
    /// documents.
    #[error("{document} was changed by others {tries} times in a row; nothing was written")]
    Contended {
        /// Which.
        document: DocumentRef,
        /// How often it was tried.
        tries: u32,
    },
    /// No clear answer arrived: the write **may have happened**. Load the document before you repeat it.
    #[error(
        "{document}: no clear answer arrived, so the write may have happened; load the document to find out"
    )]
    Unknown {
        /// Which.
        document: DocumentRef,
        /// The driver's error.
        source: mongodb::error::Error,
    },
    /// The server could not be reached; the write was not sent. Repeat it later.
    #[error("MongoDB could not be reached, nothing was written")]
    Unavailable(#[source] mongodb::error::Error),
    /// The server refused, and would refuse again.
    #[error("MongoDB refused, nothing was written")]
    Refused(#[source] mongodb::error::Error),
    /// The outbox holds as many entries as its cap allows: its messages are not delivered as fast as they are sent.
    #[error(
        "{document}: its outbox holds {held} entries, {sent} more would exceed the cap of {cap}; find out why \
         they are not delivered"
    )]
    OutboxFull {
        /// Which.
        document: DocumentRef,
        /// Entries there.
        held: usize,
        /// Messages sent.
        sent: usize,
        /// The cap.
        cap: usize,
    },
    /// A message's part is larger than its cap: send a reference to the content instead.
    #[error(
        "message `{message_type}`: its {what} has {bytes} bytes, the cap is {cap}; send a reference to the content instead"
    )]
    MessageTooLarge {
        /// The message.
        message_type: String,
        /// `payload` or `headers`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The cap.
        cap: usize,
    },
    /// A payload is nested deeper than its cap.
    #[error("message `{message_type}`: its payload is nested deeper than {cap} levels")]
    NestedTooDeep {
        /// The message.
        message_type: String,
        /// The cap.
        cap: usize,
    },
    /// A message's type is empty or too long for a routing key.
    #[error("message type `{message_type}` must have between 1 and 255 bytes")]
    MessageType {
        /// The type.
        message_type: String,
    },
    /// The document would be larger than its cap, or than the server accepts.
    #[error("{document} would have {bytes} bytes with its outbox, the cap is {cap}")]
    DocumentTooLarge {
        /// Which.
        document: DocumentRef,
        /// Its size with the save.
        bytes: usize,
        /// The cap.
        cap: usize,
    },
    /// The stored field `outbox` is not an array.
    #[error("{document}: its outbox cannot take messages")]
    OutboxNotArray {
        /// Which.
        document: DocumentRef,
        /// What it is.
        source: crate::stored::entry::NotAnArray,
    },
    /// A value could not be turned into BSON.
    #[error("{what} cannot be encoded: {reason}")]
    Encode {
        /// A document or a message.
        what: String,
        /// Why.
        reason: String,
    },
    /// A stored document does not fit the aggregate's struct.
    #[error("{document} cannot be decoded: {reason}")]
    Decode {
        /// Which.
        document: DocumentRef,
        /// Why, naming the field.
        reason: String,
    },
    /// The aggregate writes a field that belongs to the library.
    #[error(
        "field `{field}` belongs to the library; rename the aggregate's own, or mark its outbox `#[serde(skip)]`"
    )]
    ReservedField {
        /// `etag` or `outbox`.
        field: &'static str,
    },
    /// A changed field's name cannot be addressed by an update.
    #[error(
        "field `{field}`: MongoDB cannot update a field whose name is empty, begins with `$` or holds a dot"
    )]
    FieldName {
        /// The field.
        field: String,
    },
    /// The aggregate's `_id`, or a field of its shard key, was changed after it was loaded.
    #[error(
        "{document}: `{field}` was {was} when it was loaded and is {is} now; insert a new document instead"
    )]
    IdChanged {
        /// Which.
        document: DocumentRef,
        /// `_id`, or the field of the shard key.
        field: String,
        /// Its value when the aggregate was loaded.
        was: String,
        /// Its value now.
        is: String,
    },
    /// The aggregate's encoding has no `_id`, so MongoDB would create one that the aggregate doesn't know.
    #[error(
        "the aggregate's `id()` is {id}, but its encoding has no `_id`, so nothing was written: mark the field \
         `#[serde(rename = \"_id\")]`, and give an id that is an `Option` its value before the insert"
    )]
    NoId {
        /// The result of `id()`.
        id: String,
    },
    /// The aggregate's `id()` and the `_id` of its encoding are two different values.
    #[error(
        "the aggregate's `id()` is {id}, but it encodes {encoded} as `_id`, so nothing was written: return the field \
         `_id` from `id()`; if the field has an encoding of its own, give that to its type instead"
    )]
    IdMismatch {
        /// The result of `id()`, by its own encoding.
        id: String,
        /// The `_id` of the encoding.
        encoded: String,
    },
    /// The encoded aggregate could not be read as the same struct again.
    #[error(
        "{document}: the encoded aggregate does not decode as its struct again, so nothing was written: {reason}"
    )]
    Unreadable {
        /// Which.
        document: DocumentRef,
        /// Why, naming the field.
        reason: String,
    },
    /// A field that the struct doesn't know, inside one that was changed, can't be written back.
    #[error(
        "field `{field}` is unknown to the struct and cannot be written back, since it is not valid UTF-8, so nothing was \
         written: repair or remove it in the stored document"
    )]
    UnreadableField {
        /// Its path.
        field: String,
    },
    /// The caller's update already touches fields that the library writes.
    #[error("the update already has `{path}`; leave `outbox` and `etag` to the library")]
    UpdateTouchesOutbox {
        /// The path in conflict.
        path: String,
    },
}

impl Error {
    /// Whether the same call may succeed later, unchanged. False for [`Error::Unknown`]: load the document
    /// first.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contended { .. } | Self::OutboxFull { .. })
    }

    /// An aggregate's encoding that cannot be read again.
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

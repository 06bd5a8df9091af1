//! An aggregate as it was loaded, with what the next save needs to know.

use std::ops::{Deref, DerefMut};

use mongodb::bson::{Bson, DateTime, Document as BsonDocument, RawDocumentBuf};

use super::fields::{Unknown, check_reserved};
use crate::{
    Document, DocumentRef, Due,
    clock::later,
    codec,
    entry::{ETAG, NotAnArray, OUTBOX, type_name},
    error::Error,
    trace,
};

/// An aggregate and the state it was loaded in. Dereferences to the aggregate.
#[derive(Debug)]
pub struct Loaded<T> {
    pub(super) value: T,
    pub(super) document: DocumentRef,
    /// The stored etag, whatever its type; absent in documents that this library has not saved yet.
    pub(super) etag: Option<Bson>,
    /// The aggregate as it would be written if nothing were changed.
    pub(super) baseline: RawDocumentBuf,
    pub(super) unknown: Unknown,
    /// Entries in the stored outbox, as far as known.
    pub(super) held: Result<usize, NotAnArray>,
    /// Bytes of the stored document.
    pub(super) bytes: usize,
}

impl<T> Loaded<T> {
    /// The aggregate, giving up the knowledge of how it was loaded.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// Which document it is.
    pub fn document(&self) -> &DocumentRef {
        &self.document
    }
}

impl<T: Document> Loaded<T> {
    pub(super) fn read(document: DocumentRef, raw: &RawDocumentBuf) -> Result<Self, Error> {
        let decode = |reason: String| Error::Decode { document: document.clone(), reason };
        let value: T = codec::decode(raw.as_bytes()).map_err(|error| decode(error.to_string()))?;
        let baseline = encode(&value)?;
        check_reserved(Some(raw), &baseline)?;
        let field = |name: &str| -> Result<Option<Bson>, Error> {
            let value = raw.get(name).map_err(|error| decode(error.to_string()))?;
            value.map(Bson::try_from).transpose().map_err(|error| decode(error.to_string()))
        };
        let held = match field(OUTBOX)? {
            None => Ok(0),
            Some(Bson::Array(entries)) => Ok(entries.len()),
            Some(other) => Err(NotAnArray(type_name(&other))),
        };
        Ok(Self {
            etag: field(ETAG)?,
            unknown: Unknown::of(raw, &baseline),
            bytes: raw.as_bytes().len(),
            value,
            document,
            baseline,
            held,
        })
    }
}

impl<T> Deref for Loaded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Loaded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

pub(super) fn encode<T: Document>(value: &T) -> Result<RawDocumentBuf, Error> {
    codec::encode(value)
        .map_err(|error| Error::Encode { what: "the document".into(), reason: error.to_string() })
}

/// When a message is due, where that is still to come.
pub(super) fn scheduled(due: Due, now: DateTime) -> Option<DateTime> {
    let at = match due {
        Due::Now => now,
        Due::At(at) => at,
        Due::After(after) => later(now, after),
    };
    Some(at).filter(|at| *at > now)
}

/// A staged message as the entry to store.
pub(super) fn entry(
    staged: &crate::Staged,
    payload: &Bson,
    via: Option<&str>,
    now: DateTime,
    claim: Option<(&str, DateTime)>,
) -> BsonDocument {
    let due = scheduled(staged.due, now);
    // Nobody holds a claim on what is not to be delivered now.
    let claim = claim.filter(|_| due.is_none());
    let mut entry = BsonDocument::new();
    entry.insert("id", staged.id);
    entry.insert("type", staged.message_type);
    entry.insert("payload", payload.clone());
    let headers = trace::stored(staged.headers.clone());
    if !headers.is_empty() {
        let headers: BsonDocument = headers.into_iter().map(|(name, value)| (name, value.into())).collect();
        entry.insert("headers", headers);
    }
    if let Some(via) = via {
        entry.insert("via", via);
    }
    entry.insert("created_at", now);
    entry.insert("available_at", claim.map(|(_, until)| until).or(due).unwrap_or(now));
    if let Some((token, _)) = claim {
        entry.insert("claimed_by", token);
    }
    entry
}

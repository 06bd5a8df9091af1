//! An aggregate as it was loaded, with the state that the next save needs.

use std::ops::{Deref, DerefMut};

use mongodb::bson::{Bson, Document, RawDocument, RawDocumentBuf};

use super::{
    assumption::Assumption,
    fields::{Changes, changes, check_reserved},
    identity::ID,
    unknown::{
        Unknown,
        renamed::{Differences, compare},
    },
};
use crate::{
    aggregate::Aggregate,
    dispatch::{Dispatch, Disposition},
    encoding::{
        bytes::{self, Builder, Element},
        codec, salvage,
    },
    store::error::Error,
    stored::{
        document_ref::DocumentRef,
        entry::{ETAG, NotAnArray, OUTBOX, type_name},
    },
};

/// An aggregate and its state at load time. Dereferences to the aggregate.
#[derive(Debug)]
pub struct Loaded<T> {
    pub(super) value: T,
    pub(super) document: DocumentRef,
    /// The stored field `etag`, whatever its type; absent in documents that this library has not saved yet.
    pub(super) etag: Option<RawDocumentBuf>,
    /// The encoding that the aggregate would have if it were saved unchanged.
    pub(super) baseline: RawDocumentBuf,
    /// The stored fields that the struct doesn't know, and the fields that it knows under another name.
    pub(super) differences: Differences,
    /// Number of entries in the stored outbox, as far as known.
    pub(super) held: Result<usize, NotAnArray>,
    /// Decides whether the next save may assume that the stored entries have been delivered and cleared.
    pub(super) assumption: Assumption,
    /// The size of the stored document in bytes.
    pub(super) bytes: usize,
}

impl<T> Loaded<T> {
    /// Returns the aggregate without the state that a save needs.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// The document that the aggregate was loaded from.
    pub fn document(&self) -> &DocumentRef {
        &self.document
    }

    /// The stored etag.
    pub(super) fn etag(&self) -> Option<Element<'_>> {
        self.etag.as_ref().and_then(|etag| bytes::element(etag, ETAG))
    }
}

impl<T: Aggregate> Loaded<T> {
    /// Decodes `raw`, which is the stored form of `document`.
    pub(super) fn read(document: DocumentRef, raw: &RawDocumentBuf) -> Result<Self, Error> {
        let stored = match read_stored::<T>(raw) {
            Ok(stored) => stored,
            Err(reason) => return Err(Error::Decode { document, reason }),
        };
        let baseline = encode(&stored.value)?;
        check_reserved(Some(raw), &baseline)?;

        Ok(Self {
            document,
            etag: stored.etag,
            held: stored.held,
            assumption: Assumption::default(),
            differences: compare::<T>(raw, &baseline, T::ELEMENT_KEYS)?,
            bytes: raw.as_bytes().len(),
            value: stored.value,
            baseline,
        })
    }

    /// Records how many entries a save wrote, how many other entries the outbox has, and how the new entries were
    /// dispatched.
    pub(super) fn has_sent(&mut self, sent: usize, others: usize, dispatch: &Dispatch) {
        if others == 0 {
            self.assumption.was_right();
        }
        let left = match dispatch {
            Dispatch::Settled(settled) if settled.iter().all(|(_, it)| *it == Disposition::Delivered) => 0,
            Dispatch::Background => {
                self.assumption.has_dispatched(sent);
                sent
            }
            _ => sent,
        };
        if let Ok(held) = &mut self.held {
            *held = others + left;
        }
    }

    /// Returns the fields that a save of the current aggregate writes. If there is any change, fields that were read
    /// under another name are also moved to their current name.
    pub(super) fn changes(&self, now: &RawDocument) -> Result<Changes, Error> {
        let mut changes = changes(&self.baseline, now, &self.differences.unknown, T::ELEMENT_KEYS)?;
        if changes.is_empty() || self.differences.renamed.is_empty() {
            return Ok(changes);
        }

        for field in &self.differences.unstored {
            if !changes.set.contains(field)
                && let Some(element) = bytes::element(now, field)
            {
                changes.set.push(element);
            }
        }
        changes.unset.extend(self.differences.renamed.iter().cloned());
        Ok(changes)
    }

    /// Records the unknown parts of the fields that a save has set.
    pub(super) fn now_knows(&mut self, set: Vec<(String, Option<Unknown>)>, unset: &[String]) {
        for field in unset {
            self.differences.unknown.remove(field);
        }
        self.differences.renamed.retain(|field| !unset.contains(field));
        for (field, unknown) in set {
            match unknown {
                Some(unknown) => self.differences.unknown.insert(field, unknown),
                None => self.differences.unknown.remove(&field),
            };
        }
    }

    /// Checks that no field of the document's key has changed since the load.
    pub(super) fn check_named_alike(&self, now: &RawDocument, shard_key: &[String]) -> Result<(), Error> {
        for field in [ID].into_iter().chain(shard_key.iter().map(String::as_str)) {
            if bytes::element(&self.baseline, field) != bytes::element(now, field) {
                return Err(Error::IdChanged {
                    document: self.document.clone(),
                    field: field.to_owned(),
                    was: shown(&self.baseline, field),
                    is: shown(now, field),
                });
            }
        }
        Ok(())
    }
}

/// The parts of a stored document that are decoded.
struct Stored<T> {
    value: T,
    etag: Option<RawDocumentBuf>,
    held: Result<usize, NotAnArray>,
}

fn read_stored<T: Aggregate>(raw: &RawDocument) -> Result<Stored<T>, String> {
    let value = decode(raw)?;
    let etag = match field(raw, ETAG)? {
        Some(etag) if etag.read().is_none() => return Err(damaged(ETAG)),
        Some(etag) => {
            let mut field = Builder::new();
            field.push(etag);
            Some(field.build())
        }
        None => None,
    };
    Ok(Stored { value, etag, held: held(raw)? })
}

/// Number of entries in the stored outbox.
fn held(raw: &RawDocument) -> Result<Result<usize, NotAnArray>, String> {
    let Some(outbox) = field(raw, OUTBOX)? else {
        return Ok(Ok(0));
    };
    // Count the entries without decoding them.
    Ok(match outbox.items() {
        Some(entries) => Ok(entries.count()),
        None => Err(NotAnArray(type_name(&outbox.read_lossily()))),
    })
}

fn field<'a>(raw: &'a RawDocument, name: &str) -> Result<Option<Element<'a>>, String> {
    salvage::field(raw, name).map_err(|_broken| format!("field `{name}` cannot be found"))
}

fn shown(document: &RawDocument, field: &str) -> String {
    match document.get(field).map(|value| value.map(Bson::try_from)) {
        Ok(Some(Ok(value))) => value.to_string(),
        Ok(None) => "absent".to_owned(),
        Ok(Some(Err(_))) | Err(_) => "unreadable".to_owned(),
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

/// Decodes an aggregate, even if fields that the struct doesn't know contain invalid UTF-8.
fn decode<T: Aggregate>(raw: &RawDocument) -> Result<T, String> {
    let error = match codec::decode(raw.as_bytes()) {
        Ok(value) => return Ok(value),
        Err(error) => error.to_string(),
    };
    if Document::try_from(raw).is_ok() {
        return Err(error);
    }

    // The lossy copy replaces invalid text, so check that the struct writes exactly the stored values. Entries of the
    // outbox are excluded, because delivery checks the entries.
    let mut lossy = salvage::lossy(raw);
    lossy.remove(OUTBOX);
    let lossy = codec::encode(&lossy).map_err(|error| error.to_string())?;
    let value: T = codec::decode(lossy.as_bytes()).map_err(|error| error.to_string())?;
    let known = codec::encode(&value).map_err(|error| error.to_string())?;
    let known = codec::to_document(&known).map_err(|error| error.to_string())?;
    for element in bytes::elements(raw) {
        if let Some(known) = known.get(element.text_name())
            && let Some(path) = element.damage(known)
        {
            return Err(damaged(&path));
        }
    }
    Ok(value)
}

fn damaged(path: &str) -> String {
    format!("field `{path}` contains invalid UTF-8 or invalid BSON")
}

pub(super) fn encode<T: Aggregate>(value: &T) -> Result<RawDocumentBuf, Error> {
    codec::encode(value).map_err(Error::of_encoding)
}

/// Checks that the encoded aggregate can be loaded again.
pub(super) fn check_readable<T: Aggregate>(
    document: &DocumentRef,
    content: &RawDocument,
) -> Result<(), Error> {
    match codec::decode::<T>(content.as_bytes()) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Unreadable { document: document.clone(), reason: error.to_string() }),
    }
}

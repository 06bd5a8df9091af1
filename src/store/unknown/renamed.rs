//! Finds the stored fields that the struct has read under another name, as with `#[serde(alias)]`.
//!
//! A field that was read under another name appears unknown, because the struct writes it under its new name. If the
//! field were restored, the document would have both names, which serde refuses to read. serde doesn't report which
//! fields it has read. So if a level of the document has both an unknown field and a struct field that isn't stored,
//! the unknown fields are tried: the struct is decoded from its own output plus all unknown fields. If that fails,
//! each unknown field is tried by itself. A field with which decoding fails was read under another name.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::{Bson, Document, RawDocument};

use super::{
    Unknown,
    carry::{Dropped, carry},
    find::{Search, unknown},
    path::{FieldPath, Keys},
};
use crate::{
    aggregate::Aggregate,
    encoding::{codec, raw},
    store::{error::Error, identity::ID},
    stored::entry::{ETAG, OUTBOX},
};

/// If there are more candidates than this, for example in a map of structs, candidates with the same last path segment
/// are tried together.
const MOST_TRIALS: usize = 32;

/// The differences between a stored document and what its struct writes: fields that the struct doesn't know, and
/// fields that it knows under another name.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    /// The unknown parts inside each top-level field.
    pub(crate) unknown: BTreeMap<String, Unknown>,
    /// Top-level fields that were read under another name.
    pub(crate) renamed: Vec<String>,
    /// Top-level fields that the struct writes but that aren't stored.
    pub(crate) unstored: Vec<String>,
}

/// Compares a stored document with the output of the struct that was read from it.
pub(crate) fn compare<T: Aggregate>(
    stored: &RawDocument,
    known: &RawDocument,
    keys: Keys,
) -> Result<Differences, Error> {
    let mut search = Search::default();
    let found = unknown(stored, known, keys, &mut search).map_err(|error| encode_error(&error))?;
    let inside = search.candidates;

    let (in_stored, in_known) = (raw::fields_by_name(stored), raw::fields_by_name(known));
    let unstored: Vec<String> = in_known
        .keys()
        .filter(|name| !in_stored.contains_key(*name))
        .map(|name| (*name).to_owned())
        .collect();

    // If all fields of the struct are stored, the struct has read no field under another name.
    let mut top = Vec::new();
    if !unstored.is_empty() {
        let own = [ID, ETAG, OUTBOX];
        let unread = in_stored.keys().filter(|name| !in_known.contains_key(*name) && !own.contains(name));
        top.extend(unread.map(|name| (*name).to_owned()));
    }

    let none = inside.is_empty() && top.is_empty();
    if none || reads_all::<T>(stored, known, &found, &top, keys) {
        return Ok(Differences { unknown: found, renamed: Vec::new(), unstored });
    }

    // If the struct can't be decoded with a field added, that field was read under another name.
    let mut renamed = BTreeSet::new();
    for tried in trials(&inside) {
        let others = inside.difference(&tried).cloned().collect();
        let mut search = Search { renamed: others, candidates: BTreeSet::new() };
        let with = unknown(stored, known, keys, &mut search).map_err(|error| encode_error(&error))?;
        if let Ok(with) = merged(known, &with, keys)
            && !is_read::<T>(&with)
        {
            renamed.extend(tried);
        }
    }

    let mut search = Search { renamed, candidates: BTreeSet::new() };
    let found = unknown(stored, known, keys, &mut search).map_err(|error| encode_error(&error))?;

    top.retain(|name| {
        let with = with_fields(known, stored, std::slice::from_ref(name));
        with.is_ok_and(|with| !is_read::<T>(&with))
    });
    Ok(Differences { unknown: found, renamed: top, unstored })
}

/// Tries all candidates at once. Returns true if no candidate was read under another name, or if trials prove nothing
/// because the struct can't even be decoded from its own output.
fn reads_all<T: Aggregate>(
    stored: &RawDocument,
    known: &RawDocument,
    found: &BTreeMap<String, Unknown>,
    top: &[String],
    keys: Keys,
) -> bool {
    let all = merged(known, found, keys).and_then(|merged| with_fields(&merged, stored, top));
    all.is_ok_and(|all| is_read::<T>(&all)) || !is_read::<T>(known)
}

/// The candidates in the groups that are tried together.
fn trials(candidates: &BTreeSet<String>) -> Vec<BTreeSet<String>> {
    if candidates.len() <= MOST_TRIALS {
        return candidates.iter().map(|path| BTreeSet::from([path.clone()])).collect();
    }

    let mut by_last: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for path in candidates {
        let last = path.rsplit_once('.').map_or(path.as_str(), |(_, last)| last);
        by_last.entry(last).or_default().insert(path.clone());
    }
    by_last.into_values().collect()
}

/// Returns the value that a save would write if nothing inside it had changed, including the unknown fields.
fn merged(
    known: &RawDocument,
    unknown: &BTreeMap<String, Unknown>,
    keys: Keys,
) -> Result<mongodb::bson::RawDocumentBuf, Error> {
    let mut document = codec::to_document(known).map_err(|error| encode_error(&error))?;
    for (name, value) in raw::fields(known).map_err(|error| encode_error(&error))? {
        if let Some(inside) = unknown.get(name) {
            let carried = carry(inside, value, value, &FieldPath::of(name, keys), &mut Dropped::new())?;
            document.insert(name, carried.value);
        }
    }
    codec::encode(&document).map_err(|error| encode_error(&error))
}

fn with_fields(
    known: &RawDocument,
    stored: &RawDocument,
    names: &[String],
) -> Result<mongodb::bson::RawDocumentBuf, Error> {
    let mut document: Document = codec::to_document(known).map_err(|error| encode_error(&error))?;
    let stored = raw::fields_by_name(stored);
    for name in names {
        if let Some(Some(value)) = stored.get(name.as_str())
            && let Ok(value) = Bson::try_from(*value)
        {
            document.insert(name.as_str(), value);
        }
    }
    codec::encode(&document).map_err(|error| encode_error(&error))
}

fn encode_error(error: &codec::CodecError) -> Error {
    Error::Encode { what: "an aggregate".into(), reason: error.to_string() }
}

fn is_read<T: Aggregate>(document: &RawDocument) -> bool {
    codec::decode::<T>(document.as_bytes()).is_ok()
}

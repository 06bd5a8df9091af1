//! Finds the parts of a stored document that its struct doesn't know.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::{Bson, RawArray, RawBsonRef, RawDocument};

use super::{
    Unknown,
    elements::read_from,
    path::{FieldPath, Keys},
};
use crate::encoding::{codec::CodecError, raw};

/// The state while a stored document is compared with its struct.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Paths of stored fields that the struct has read under another name. Such fields aren't unknown.
    pub(super) renamed: BTreeSet<String>,
    /// Paths of unknown fields at the same level as a struct field that isn't stored. The unknown field may be the
    /// struct field under another name, such as a serde alias.
    pub(super) candidates: BTreeSet<String>,
}

/// Returns the unknown parts of each top-level field. `known` is the aggregate as it was read from `stored` and encoded
/// again.
pub(super) fn unknown(
    stored: &RawDocument,
    known: &RawDocument,
    keys: Keys,
    search: &mut Search,
) -> Result<BTreeMap<String, Unknown>, CodecError> {
    let stored = raw::fields_by_name(stored);
    let mut found = BTreeMap::new();
    for (name, known) in raw::fields(known)? {
        if let Some(Some(stored)) = stored.get(name)
            && let Some(inside) = inside(*stored, known, &FieldPath::of(name, keys), search)
        {
            found.insert(name.to_owned(), inside);
        }
    }
    Ok(found)
}

fn inside(
    stored: RawBsonRef<'_>,
    known: RawBsonRef<'_>,
    path: &FieldPath<'_>,
    search: &mut Search,
) -> Option<Unknown> {
    match (stored, known) {
        (RawBsonRef::Document(stored), RawBsonRef::Document(known)) => {
            inside_document(stored, known, path, search)
        }
        (RawBsonRef::Array(stored), RawBsonRef::Array(known)) => inside_array(stored, known, path, search),
        _ => None,
    }
}

fn inside_document(
    stored: &RawDocument,
    known: &RawDocument,
    path: &FieldPath<'_>,
    search: &mut Search,
) -> Option<Unknown> {
    if stored.as_bytes() == known.as_bytes() {
        return None;
    }

    let known = raw::fields_by_name(known);
    // If the struct writes a field that isn't stored, the struct may have read an unknown field under another name.
    let has_more = {
        let stored = raw::fields_by_name(stored);
        known.keys().any(|name| !stored.contains_key(name))
    };

    let mut found = BTreeMap::new();
    for element in stored.iter_elements() {
        let Ok(element) = element else { return Some(Unknown::Unreadable) };
        let name = raw::text(element.key());
        let unknown = match (known.get(name), element.value()) {
            (Some(Some(known)), Ok(stored)) => inside(stored, *known, &path.then(name), search),
            (None, Ok(stored)) => {
                if has_more {
                    let path = path.then(name).to_string();
                    if search.renamed.contains(&path) {
                        continue;
                    }
                    search.candidates.insert(path);
                }
                Some(Bson::try_from(stored).map_or(Unknown::Unreadable, Unknown::Field))
            }
            _ => Some(Unknown::Unreadable),
        };
        if let Some(unknown) = unknown {
            found.entry(name.to_owned()).or_insert(unknown);
        }
    }
    if found.is_empty() { None } else { Some(Unknown::Fields(found)) }
}

fn inside_array(
    stored: &RawArray,
    known: &RawArray,
    path: &FieldPath<'_>,
    search: &mut Search,
) -> Option<Unknown> {
    if stored.as_bytes() == known.as_bytes() {
        return None;
    }
    let (Ok(stored), Ok(known)) = (raw::items(stored), raw::items(known)) else {
        return Some(Unknown::Unreadable);
    };

    let read_from = read_from(&stored, &known, path.key(), agrees);
    let mut found = BTreeMap::new();
    let mut read = 0;
    for (place, from) in read_from.into_iter().enumerate() {
        let Some(from) = from else { continue };
        read += 1;
        if let Some(unknown) = inside(stored[from], known[place], path, search) {
            found.insert(place, unknown);
        }
    }

    let left_out = stored.len() - read;
    if found.is_empty() && left_out == 0 {
        return None;
    }
    Some(Unknown::Elements { elements: found, left_out })
}

/// Whether a struct that has read `stored` can have written `known`. The struct may have dropped fields, filled in
/// defaults for absent fields, and changed the type of numbers.
fn agrees(stored: RawBsonRef<'_>, known: RawBsonRef<'_>) -> bool {
    match (stored, known) {
        (RawBsonRef::Document(stored), RawBsonRef::Document(known)) => {
            let stored = raw::fields_by_name(stored);
            let mut known = known.iter();
            known.all(|element| {
                let Ok((name, known)) = element else { return false };
                match stored.get(raw::text(name)) {
                    Some(Some(stored)) => agrees(*stored, known),
                    Some(None) => false,
                    None => true,
                }
            })
        }
        (RawBsonRef::Array(stored), RawBsonRef::Array(known)) => {
            match (raw::items(stored), raw::items(known)) {
                (Ok(stored), Ok(known)) => {
                    stored.len() == known.len()
                        && stored.iter().zip(&known).all(|(stored, known)| agrees(*stored, *known))
                }
                _ => false,
            }
        }
        (stored, known) => stored == known || number(stored).is_some_and(|it| number(known) == Some(it)),
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "if two numbers are equal as doubles, one may have been read from the other"
)]
fn number(value: RawBsonRef<'_>) -> Option<f64> {
    match value {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number as f64),
        RawBsonRef::Double(number) => Some(number),
        _ => None,
    }
}

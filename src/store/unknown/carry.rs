//! Restores unknown fields in the values that a save writes.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::{Bson, Document, RawArray, RawBsonRef, RawDocument};
use parking_lot::Mutex;

use super::{Unknown, elements::recognise, path::FieldPath};
use crate::{encoding::raw, store::error::Error};

/// At most this many paths are logged, once each. The number is limited because a path may contain the keys of a map.
const MOST_PATHS: usize = 1_000;

/// The value that a save writes into a field, and the parts of that value that the struct doesn't know.
pub(crate) struct Carried {
    pub(crate) value: Bson,
    pub(crate) unknown: Option<Unknown>,
}

/// Number of unknown fields that were dropped because their array elements were not recognised, by path.
pub(crate) type Dropped = BTreeMap<String, usize>;

/// Returns a value of the aggregate, with the unknown fields of the stored value restored.
pub(crate) fn carry(
    unknown: &Unknown,
    before: RawBsonRef<'_>,
    now: RawBsonRef<'_>,
    path: &FieldPath<'_>,
    dropped: &mut Dropped,
) -> Result<Carried, Error> {
    match (unknown, before, now) {
        (Unknown::Fields(fields), RawBsonRef::Document(before), RawBsonRef::Document(now)) => {
            carry_fields(fields, before, now, path, dropped)
        }
        (Unknown::Elements { elements, left_out }, RawBsonRef::Array(before), RawBsonRef::Array(now)) => {
            if *left_out > 0 {
                *dropped.entry(path.to_string()).or_default() += left_out;
            }
            carry_elements(elements, before, now, path, dropped)
        }
        (Unknown::Unreadable, ..) => Err(Error::UnreadableField { field: path.to_string() }),
        // The value is no longer a sub-document or array as before, so none of its old content is kept.
        _ => Ok(Carried { value: owned(now)?, unknown: None }),
    }
}

fn carry_fields(
    unknown: &BTreeMap<String, Unknown>,
    before: &RawDocument,
    now: &RawDocument,
    path: &FieldPath<'_>,
    dropped: &mut Dropped,
) -> Result<Carried, Error> {
    let before = raw::fields_by_name(before);
    let mut document = Document::new();
    let mut left = BTreeMap::new();
    for (name, now) in fields(now)? {
        let (Some(inside), Some(Some(before))) = (unknown.get(name), before.get(name)) else {
            document.insert(name, owned(now)?);
            continue;
        };
        let carried = carry(inside, *before, now, &path.then(name), dropped)?;
        document.insert(name, carried.value);
        if let Some(inside) = carried.unknown {
            left.insert(name.to_owned(), inside);
        }
    }

    for (name, unknown) in unknown {
        if document.contains_key(name) || before.contains_key(name.as_str()) {
            continue;
        }
        match unknown {
            Unknown::Field(value) => {
                document.insert(name, value.clone());
                left.insert(name.clone(), unknown.clone());
            }
            _ => return Err(Error::UnreadableField { field: path.then(name).to_string() }),
        }
    }
    let unknown = if left.is_empty() { None } else { Some(Unknown::Fields(left)) };
    Ok(Carried { value: document.into(), unknown })
}

fn carry_elements(
    unknown: &BTreeMap<usize, Unknown>,
    before: &RawArray,
    now: &RawArray,
    path: &FieldPath<'_>,
    dropped: &mut Dropped,
) -> Result<Carried, Error> {
    let (before, now) = (items(before)?, items(now)?);
    let recognised = recognise(&before, &now, path.key());

    let mut array = Vec::with_capacity(now.len());
    let mut left = BTreeMap::new();
    for (place, now) in now.iter().enumerate() {
        let was = recognised[place];
        let Some((was, inside)) = was.and_then(|was| Some((was, unknown.get(&was)?))) else {
            array.push(owned(*now)?);
            continue;
        };
        let carried = carry(inside, before[was], *now, path, dropped)?;
        array.push(carried.value);
        if let Some(inside) = carried.unknown {
            left.insert(place, inside);
        }
    }

    // If every current element is recognised, the stored elements without a match were removed on purpose.
    if recognised.iter().any(Option::is_none) {
        let kept: BTreeSet<usize> = recognised.into_iter().flatten().collect();
        for (place, unknown) in unknown {
            if !kept.contains(place) {
                unknown.count(path, dropped);
            }
        }
    }

    let unknown =
        if left.is_empty() { None } else { Some(Unknown::Elements { elements: left, left_out: 0 }) };
    Ok(Carried { value: array.into(), unknown })
}

impl Unknown {
    /// Records every unknown field as dropped.
    fn count(&self, path: &FieldPath<'_>, dropped: &mut Dropped) {
        match self {
            Self::Field(_) | Self::Unreadable => *dropped.entry(path.to_string()).or_default() += 1,
            Self::Fields(fields) => {
                for (name, unknown) in fields {
                    unknown.count(&path.then(name), dropped);
                }
            }
            Self::Elements { elements, left_out } => {
                if *left_out > 0 {
                    *dropped.entry(path.to_string()).or_default() += left_out;
                }
                for unknown in elements.values() {
                    unknown.count(path, dropped);
                }
            }
        }
    }
}

/// Logs a warning once per process for each path.
pub(crate) fn warn_of(namespace: &mongodb::Namespace, dropped: &Dropped) {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    for path in dropped.keys() {
        let path = format!("{namespace}: {path}");
        let mut warned = WARNED.lock();
        if warned.len() < MOST_PATHS && warned.insert(path.clone()) {
            tracing::warn!(
                field = path,
                "a save dropped a field that the struct doesn't know, because its array element changed and \
                 could not be recognised; declare a key of the elements in `Aggregate::ELEMENT_KEYS`"
            );
        }
    }
}

fn fields(document: &RawDocument) -> Result<Vec<(&str, RawBsonRef<'_>)>, Error> {
    raw::fields(document).map_err(Error::of_encoding)
}

fn items(array: &RawArray) -> Result<Vec<RawBsonRef<'_>>, Error> {
    raw::items(array).map_err(Error::of_encoding)
}

fn owned(value: RawBsonRef<'_>) -> Result<Bson, Error> {
    raw::owned(value).map_err(Error::of_encoding)
}

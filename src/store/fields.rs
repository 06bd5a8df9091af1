//! Which fields a save writes: what changed between the aggregate as loaded and as it is now.

use std::collections::{BTreeMap, HashMap, HashSet};

use mongodb::bson::{Document, RawBsonRef, RawDocument};

use super::unknown::{
    Unknown,
    carry::{Dropped, carry},
    path::{FieldPath, Keys},
};
use crate::{
    encoding::{codec, raw},
    store::error::Error,
    stored::entry::{ETAG, OUTBOX},
};

/// What a save writes: the top-level fields that it sets and removes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) set: Document,
    pub(super) unset: Vec<String>,
    /// What is unknown inside each field that is set.
    pub(super) unknown: Vec<(String, Option<Unknown>)>,
    pub(super) dropped: Dropped,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.unset.is_empty()
    }
}

/// Compares two encodings of an aggregate.
///
/// # Errors
/// [`Error::ReservedField`] where it writes the library's own fields, [`Error::FieldName`] where a changed field cannot be
/// addressed, [`Error::UnreadableField`] where an unknown field inside a changed one cannot be written back,
/// [`Error::Encode`] where the encoding itself is broken.
pub(super) fn changes(
    before: &RawDocument,
    now: &RawDocument,
    unknown: &BTreeMap<String, Unknown>,
    keys: Keys,
) -> Result<Changes, Error> {
    let mut changes = Changes::default();
    if before.as_bytes() == now.as_bytes() {
        return Ok(changes);
    }
    let before = raw::fields(before).map_err(Error::of_encoding)?;
    let was: HashMap<&str, RawBsonRef<'_>> = before.iter().copied().collect();
    let mut is = HashSet::new();
    for (name, value) in raw::fields(now).map_err(Error::of_encoding)? {
        is.insert(name);
        let was = was.get(name);
        if was == Some(&value) {
            continue;
        }
        let value = match (unknown.get(name), was) {
            (Some(inside), Some(was)) => {
                let carried = carry(inside, *was, value, &FieldPath::of(name, keys), &mut changes.dropped)?;
                changes.unknown.push((name.to_owned(), carried.unknown));
                carried.value
            }
            _ => raw::owned(value).map_err(Error::of_encoding)?,
        };
        changes.set.insert(addressable(name)?, value);
    }
    for (name, _) in before {
        // Dropping the library's own fields from a map that had picked them up drops nothing that is stored.
        let is_ours = [ETAG, OUTBOX].contains(&name);
        if !is_ours && !is.contains(name) {
            changes.unset.push(addressable(name)?);
        }
    }
    Ok(changes)
}

/// Checks that an aggregate doesn't write the library's fields itself, other than as they were stored.
pub(crate) fn check_reserved(stored: Option<&RawDocument>, encoded: &RawDocument) -> Result<(), Error> {
    for field in [ETAG, OUTBOX] {
        let written = encoded.get(field).ok().flatten();
        let was = stored.and_then(|stored| stored.get(field).ok().flatten());
        if written.is_some() && written != was {
            return Err(Error::ReservedField { field });
        }
    }
    Ok(())
}

/// An aggregate's encoding as a document to insert.
pub(crate) fn insertable(encoded: &RawDocument) -> Result<Document, Error> {
    codec::to_document(encoded).map_err(Error::of_encoding)
}

fn addressable(name: &str) -> Result<String, Error> {
    if name.is_empty() || name.starts_with('$') || name.contains('.') {
        return Err(Error::FieldName { field: name.into() });
    }
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{RawDocumentBuf, doc};

    use super::*;

    fn raw(document: Document) -> RawDocumentBuf {
        codec::encode(&document).unwrap()
    }

    fn between(before: Document, now: Document) -> Result<Changes, Error> {
        changes(&raw(before), &raw(now), &BTreeMap::new(), &[])
    }

    #[test]
    fn only_changed_fields_are_written_and_removed_ones_are_unset() {
        let found =
            between(doc! { "a": 1, "b": [1], "c": "x" }, doc! { "a": 1, "b": [1, 2], "d": true }).unwrap();
        assert_eq!(found.set, doc! { "b": [1, 2], "d": true });
        assert_eq!(found.unset, ["c"]);
        assert!(between(doc! { "a": f64::NAN }, doc! { "a": f64::NAN }).unwrap().is_empty());
    }

    #[test]
    fn a_field_that_no_update_can_address_is_refused_by_name() {
        for name in ["a.b", "$a", ""] {
            let error = between(doc! {}, doc! { name: 1 }).unwrap_err();
            assert!(matches!(error, Error::FieldName { field } if field == name));
        }
    }

    #[test]
    fn the_librarys_own_fields_may_pass_through_but_not_change() {
        let stored = raw(doc! { "etag": 1 });
        assert!(check_reserved(Some(&stored), &raw(doc! { "etag": 1 })).is_ok());
        let changed = check_reserved(Some(&stored), &raw(doc! { "etag": 2 }));
        assert!(matches!(changed, Err(Error::ReservedField { field: "etag" })));
        assert!(check_reserved(None, &raw(doc! { "outbox": [] })).is_err());
    }
}

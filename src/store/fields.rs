//! Finds the fields that a save writes, which are the fields that differ between the aggregate as loaded and its
//! current state.

use std::collections::{BTreeMap, HashMap};

use mongodb::bson::{RawBsonRef, RawDocument, doc};

use super::unknown::{
    Unknown,
    carry::{Dropped, carry},
    path::{FieldPath, Keys},
};
use crate::{
    encoding::{
        bytes::{self, Builder, Element},
        codec,
    },
    store::error::Error,
    stored::entry::{ETAG, OUTBOX},
};

/// The fields of a document that are reserved for the library.
const RESERVED: [&str; 2] = [ETAG, OUTBOX];

/// The top-level fields that a save sets and removes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The fields to set, encoded.
    pub(super) set: Builder,
    pub(super) unset: Vec<String>,
    /// For each field that is set, the stored parts that the struct doesn't know.
    pub(super) unknown: Vec<(String, Option<Unknown>)>,
    pub(super) dropped: Dropped,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.unset.is_empty()
    }
}

/// Compares two encodings of an aggregate, byte by byte.
///
/// # Errors
/// [`Error::ReservedField`] if the aggregate changes the library's own fields, [`Error::FieldName`] if an update can't
/// address a changed field, [`Error::UnreadableField`] if an unknown field inside a changed field can't be written
/// back, [`Error::Encode`] if the encoding itself is broken.
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

    let mut was: HashMap<&[u8], Element<'_>> =
        bytes::elements(before).map(|element| (element.name, element)).collect();
    for element in bytes::elements(now) {
        let was = was.remove(element.name);
        if was == Some(element) {
            continue;
        }
        let name = addressable(element.name)?;
        if let Some(field) = RESERVED.into_iter().find(|field| *field == name) {
            return Err(Error::ReservedField { field });
        }
        match unknown.get(name) {
            Some(inside) if was.is_some() => {
                let (before, now) = (value_of(before, name)?, value_of(now, name)?);
                let carried = carry(inside, before, now, &FieldPath::of(name, keys), &mut changes.dropped)?;
                let value = codec::encode(&doc! { name: carried.value }).map_err(Error::of_encoding)?;
                changes.set.extend(&value);
                changes.unknown.push((name.to_owned(), carried.unknown));
            }
            _ => changes.set.push(element),
        }
    }

    for removed in bytes::elements(before).filter(|element| was.contains_key(element.name)) {
        let name = text(removed.name)?;
        // A flattened map may have picked up the library's own fields. If the aggregate removes them from the map, the
        // stored fields stay.
        if !RESERVED.contains(&name) {
            changes.unset.push(addressable(removed.name)?.to_owned());
        }
    }
    Ok(changes)
}

/// Checks that an aggregate doesn't write the library's fields, unless their values are unchanged from the stored
/// document.
pub(crate) fn check_reserved(stored: Option<&RawDocument>, encoded: &RawDocument) -> Result<(), Error> {
    for field in RESERVED {
        let written = encoded.get(field).ok().flatten();
        let was = stored.and_then(|stored| stored.get(field).ok().flatten());
        if written.is_some() && written != was {
            return Err(Error::ReservedField { field });
        }
    }
    Ok(())
}

fn value_of<'a>(document: &'a RawDocument, name: &str) -> Result<RawBsonRef<'a>, Error> {
    let value = document.get(name).map_err(Error::of_encoding)?;
    value.ok_or_else(|| Error::of_encoding(format!("field `{name}` cannot be found")))
}

/// Returns the field's name if an update can address it.
fn addressable(name: &[u8]) -> Result<&str, Error> {
    let name = text(name)?;
    if name.is_empty() || name.starts_with('$') || name.contains('.') {
        return Err(Error::FieldName { field: name.into() });
    }
    Ok(name)
}

fn text(name: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(name).map_err(Error::of_encoding)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Document, RawDocumentBuf};

    use super::*;

    fn raw(document: Document) -> RawDocumentBuf {
        codec::encode(&document).unwrap()
    }

    fn between(before: Document, now: Document) -> Result<Changes, Error> {
        changes(&raw(before), &raw(now), &BTreeMap::new(), &[])
    }

    #[test]
    fn an_update_sets_changed_and_unsets_removed_fields() {
        let found =
            between(doc! { "a": 1, "b": [1], "c": "x" }, doc! { "a": 1, "b": [1, 2], "d": true }).unwrap();
        assert_eq!(codec::to_document(&found.set.build()).unwrap(), doc! { "b": [1, 2], "d": true });
        assert_eq!(found.unset, ["c"]);
        assert!(between(doc! { "a": f64::NAN }, doc! { "a": f64::NAN }).unwrap().is_empty());
    }

    #[test]
    fn an_unaddressable_field_is_refused_by_name() {
        for name in ["a.b", "$a", ""] {
            let error = between(doc! {}, doc! { name: 1 }).unwrap_err();
            assert!(matches!(error, Error::FieldName { field } if field == name));
        }
    }

    #[test]
    fn the_librarys_own_fields_may_not_change() {
        let stored = raw(doc! { "etag": 1 });
        assert!(check_reserved(Some(&stored), &raw(doc! { "etag": 1 })).is_ok());
        let changed = check_reserved(Some(&stored), &raw(doc! { "etag": 2 }));
        assert!(matches!(changed, Err(Error::ReservedField { field: "etag" })));
        assert!(check_reserved(None, &raw(doc! { "outbox": [] })).is_err());
    }
}

//! Which fields a save writes: what changed between the aggregate as loaded and as it is now.

use std::collections::BTreeMap;

use mongodb::bson::{Bson, Document, RawBsonRef, RawDocument};

use crate::{
    codec,
    entry::{ETAG, OUTBOX},
    error::Error,
};

/// The top-level fields that a save sets and removes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub(crate) set: Document,
    pub(crate) unset: Vec<String>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.unset.is_empty()
    }
}

/// Compares two encodings of an aggregate.
///
/// # Errors
/// [`Error::ReservedField`] where it writes the library's own fields, [`Error::FieldName`] where a changed field cannot be
/// addressed, [`Error::Encode`] where the encoding itself is broken.
pub(crate) fn changes(before: &RawDocument, now: &RawDocument, unknown: &Unknown) -> Result<Changes, Error> {
    if before.as_bytes() == now.as_bytes() {
        return Ok(Changes::default());
    }
    let mut changes = Changes::default();
    for (name, value) in elements(now)? {
        if before.get(&name).ok().flatten() == Some(value) {
            continue;
        }
        let mut value = Bson::try_from(value).map_err(|error| broken(&error))?;
        if let Some(Kept::Within(inner)) = unknown.0.get(&name) {
            inner.restore(&mut value);
        }
        changes.set.insert(addressable(name)?, value);
    }
    for (name, _) in elements(before)? {
        // Dropping the library's own fields from a map that had picked them up drops nothing that is stored.
        let is_ours = [ETAG, OUTBOX].contains(&name.as_str());
        if !is_ours && now.get(&name).ok().flatten().is_none() {
            changes.unset.push(addressable(name)?);
        }
    }
    Ok(changes)
}

/// Fields inside an aggregate's sub-documents that are stored but unknown to its struct, so that setting the sub-document
/// doesn't drop them. Unknown fields at the top level need no memory: no save touches them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Unknown(BTreeMap<String, Kept>);

#[derive(Debug, PartialEq)]
enum Kept {
    Field(Bson),
    Within(Unknown),
}

impl Unknown {
    /// What `stored` holds in its sub-documents that `known` does not.
    pub(crate) fn of(stored: &RawDocument, known: &RawDocument) -> Self {
        let mut found = BTreeMap::new();
        for (name, known) in elements(known).unwrap_or_default() {
            let RawBsonRef::Document(known) = known else {
                continue;
            };
            if let Ok(Some(RawBsonRef::Document(stored))) = stored.get(&name) {
                let within = Self::within(stored, known);
                if !within.0.is_empty() {
                    found.insert(name, Kept::Within(within));
                }
            }
        }
        Self(found)
    }

    fn within(stored: &RawDocument, known: &RawDocument) -> Self {
        let Self(mut found) = Self::of(stored, known);
        for (name, value) in elements(stored).unwrap_or_default() {
            if known.get(&name).ok().flatten().is_none()
                && let Ok(value) = Bson::try_from(value)
            {
                found.insert(name, Kept::Field(value));
            }
        }
        Self(found)
    }

    fn restore(&self, value: &mut Bson) {
        let Bson::Document(document) = value else { return };
        for (name, kept) in &self.0 {
            match (kept, document.get_mut(name)) {
                (Kept::Field(value), None) => _ = document.insert(name.clone(), value.clone()),
                (Kept::Within(inner), Some(value)) => inner.restore(value),
                _ => {}
            }
        }
    }
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
    codec::to_document(encoded).map_err(|error| broken(&error))
}

fn elements(document: &RawDocument) -> Result<Vec<(String, RawBsonRef<'_>)>, Error> {
    let named = document.iter().map(|element| {
        let (name, value) = element.map_err(|error| broken(&error))?;
        // A `&str` in one BSON version, a C string in the other.
        Ok((AsRef::<str>::as_ref(name).to_owned(), value))
    });
    named.collect()
}

fn addressable(name: String) -> Result<String, Error> {
    match name.is_empty() || name.starts_with('$') || name.contains('.') {
        true => Err(Error::FieldName { field: name }),
        false => Ok(name),
    }
}

fn broken(error: &impl std::fmt::Display) -> Error {
    Error::Encode { what: "the document".into(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{RawDocumentBuf, doc};

    use super::*;

    fn raw(document: Document) -> RawDocumentBuf {
        codec::encode(&document).unwrap()
    }

    fn between(before: Document, now: Document) -> Result<Changes, Error> {
        changes(&raw(before), &raw(now), &Unknown::default())
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
    fn unknown_fields_inside_a_changed_sub_document_survive() {
        let stored =
            raw(doc! { "address": { "street": "a", "geo": { "x": 1, "y": 2 }, "note": "kept", "gone": 1 } });
        let before = raw(doc! { "address": { "street": "a", "geo": { "x": 1 }, "gone": 1 } });
        let now = raw(doc! { "address": { "street": "b", "geo": { "x": 5 } } });
        let found = changes(&before, &now, &Unknown::of(&stored, &before)).unwrap();
        let expected = doc! { "address": { "street": "b", "geo": { "x": 5, "y": 2 }, "note": "kept" } };
        assert_eq!(found.set, expected);
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

//! The key of an aggregate, which is the `_id` of its encoding.
//!
//! # Flow
//! An insert and a save take the key from the encoding, and refuse an aggregate whose `id()` differs. A load has only
//! the id, and searches for the document by the id's own encoding first, and then by the other encodings that
//! `#[serde(with = ..)]` on the field may produce. After the load, the document is identified by the exact bytes of
//! its stored `_id`.
//!
//! # Guarantees
//! `load` finds every document that `insert` stored under the same id. An aggregate that `load` couldn't find is
//! refused by `insert` before anything is written.

use mongodb::{
    Namespace,
    bson::{
        Binary, Bson, DateTime, RawBsonRef, RawDocument, doc, oid::ObjectId, spec::BinarySubtype,
        uuid::UuidRepresentation,
    },
};
use serde::Serialize;

use crate::{
    encoding::{
        bytes,
        codec::{self, CodecError},
        salvage,
    },
    store::error::Error,
    stored::document_ref::DocumentRef,
};

pub(super) const ID: &str = "_id";

/// Encodes an id by its own type.
pub(super) fn id_of<I: Serialize + ?Sized>(id: &I) -> Result<Bson, Error> {
    codec::encode_value(id).map_err(|error| cannot_be_encoded(&error))
}

fn cannot_be_encoded(error: &CodecError) -> Error {
    Error::Encode { what: "`_id`".into(), reason: error.to_string() }
}

/// An id as the field `_id` of a document.
#[derive(Serialize)]
struct Named<'a, I> {
    #[serde(rename = "_id")]
    id: &'a I,
}

/// Checks the `_id` in an aggregate's encoding against its `id()`. Returns the number of the form in which the `_id` is
/// encoded: zero for the id's own encoding, otherwise one plus the form's index in the [other forms](other_forms).
///
/// # Errors
/// [`Error::NoId`] and [`Error::IdMismatch`].
pub(super) fn check_id<I: Serialize>(encoded: &RawDocument, id: &I) -> Result<usize, Error> {
    // In the common case the bytes equal the id's own encoding.
    let as_itself = codec::encode(&Named { id }).map_err(|error| cannot_be_encoded(&error))?;
    let element = bytes::element(encoded, ID);
    if element.is_some() && element == bytes::element(&as_itself, ID) {
        return Ok(0);
    }

    let own = id_of(id)?;
    let Some(value) = encoded.get(ID).map_err(Error::of_encoding)? else {
        return Err(Error::NoId { id: own.to_string() });
    };

    let encoded = Bson::try_from(value).map_err(Error::of_encoding)?;
    if is_same(&own, &encoded) {
        return Ok(0);
    }
    match other_forms(&own).iter().position(|form| *form == encoded) {
        Some(place) => Ok(place + 1),
        None => Err(Error::IdMismatch { id: own.to_string(), encoded: encoded.to_string() }),
    }
}

/// Whether the `_id` is an `Option` without a value. The function assumes so if the aggregate can be decoded without
/// an `_id`.
pub(super) fn is_unset<T: serde::de::DeserializeOwned>(encoded: &RawDocument) -> bool {
    if !matches!(encoded.get(ID), Ok(Some(RawBsonRef::Null))) {
        return false;
    }
    let Ok(mut without) = codec::to_document(encoded) else { return false };
    without.remove(ID);
    codec::encode(&without).is_ok_and(|without| codec::decode::<T>(without.as_bytes()).is_ok())
}

/// Returns the key of a document with this content: the exact bytes of its `_id` and of the shard key fields.
pub(super) fn named_by(
    namespace: Namespace,
    shard_key: &[String],
    content: &RawDocument,
) -> Result<DocumentRef, Error> {
    let Some(mut document) = DocumentRef::of_stored(namespace, content) else {
        return Err(Error::NoId { id: "unknown".into() });
    };

    for field in shard_key {
        let value = match salvage::field(content, field) {
            Ok(Some(value)) => value.read(),
            Ok(None) => Some(Bson::Null),
            Err(_broken) => None,
        };
        let Some(value) = value else {
            let reason = format!("shard key field `{field}` cannot be read");
            return Err(Error::Decode { document, reason });
        };
        document.add_shard_key(field, value);
    }
    Ok(document)
}

/// Whether a document that was found by another form of the requested id really has the requested id: both ids must
/// have the same BSON type.
pub(super) fn is_of_one_type(asked: &Bson, found: &Bson) -> bool {
    match (asked, found) {
        (Bson::Binary(asked), Bson::Binary(found)) => asked.subtype == found.subtype,
        _ => asked.element_type() == found.element_type(),
    }
}

/// Whether MongoDB treats the two values as the same `_id`.
fn is_same(own: &Bson, encoded: &Bson) -> bool {
    match (number(own), number(encoded)) {
        (Some(own), Some(encoded)) => own == encoded,
        _ => own == encoded || is_same_in_bytes(own, encoded),
    }
}

/// Compares bytes, because two NaNs differ when compared as values.
fn is_same_in_bytes(own: &Bson, encoded: &Bson) -> bool {
    match (codec::encode(&doc! { ID: own }), codec::encode(&doc! { ID: encoded })) {
        (Ok(own), Ok(encoded)) => own.as_bytes() == encoded.as_bytes(),
        _ => false,
    }
}

#[allow(clippy::cast_possible_truncation, reason = "only whole numbers below 2^63 are cast")]
fn number(value: &Bson) -> Option<i128> {
    match value {
        Bson::Int32(number) => Some((*number).into()),
        Bson::Int64(number) => Some((*number).into()),
        Bson::Double(number) if number.fract() == 0.0 && number.abs() < 2_f64.powi(63) => {
            Some(*number as i128)
        }
        _ => None,
    }
}

/// Returns the other forms in which a field may encode the same id, using the serde helpers of `bson` and `uuid`.
pub(super) fn other_forms(id: &Bson) -> Vec<Bson> {
    let mut forms = Vec::new();
    if let Some(uuid) = uuid_in(id) {
        forms.extend(forms_of_uuid(uuid));
    }
    match id {
        Bson::ObjectId(id) => forms.push(id.to_hex().into()),
        Bson::DateTime(date) => forms.extend(codec::rfc3339(*date).map(Bson::String)),
        Bson::String(text) => {
            forms.extend(ObjectId::parse_str(text).map(Bson::ObjectId));
            forms.extend(DateTime::parse_rfc3339_str(text).map(Bson::DateTime));
        }
        _ => {}
    }
    forms.retain(|form| form != id);
    forms
}

fn uuid_in(id: &Bson) -> Option<uuid::Uuid> {
    match id {
        Bson::Binary(Binary { subtype: BinarySubtype::Generic | BinarySubtype::Uuid, bytes }) => {
            uuid::Uuid::from_slice(bytes).ok()
        }
        Bson::String(text) => uuid::Uuid::parse_str(text).ok(),
        _ => None,
    }
}

fn forms_of_uuid(uuid: uuid::Uuid) -> Vec<Bson> {
    let bytes = mongodb::bson::Uuid::from_bytes(uuid.into_bytes());
    let mut forms = vec![
        Bson::from(bytes),
        Binary { subtype: BinarySubtype::Generic, bytes: uuid.as_bytes().to_vec() }.into(),
        uuid.hyphenated().to_string().into(),
        uuid.simple().to_string().into(),
        uuid.urn().to_string().into(),
        uuid.braced().to_string().into(),
    ];
    let legacy =
        [UuidRepresentation::JavaLegacy, UuidRepresentation::CSharpLegacy, UuidRepresentation::PythonLegacy];
    for representation in legacy {
        forms.push(Binary::from_uuid_with_representation(bytes, representation).into());
    }
    forms
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    fn encoded(id: impl Into<Bson>) -> mongodb::bson::RawDocumentBuf {
        codec::encode(&doc! { "_id": id.into(), "n": 1 }).unwrap()
    }

    #[test]
    fn an_id_in_another_encoding_is_recognised() {
        // The legacy forms of this UUID all differ from each other.
        let uuid = uuid::Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        assert_eq!(check_id(&encoded(id_of(&uuid).unwrap()), &uuid).unwrap(), 0);
        for (place, form) in other_forms(&id_of(&uuid).unwrap()).into_iter().enumerate() {
            assert_eq!(check_id(&encoded(form), &uuid).unwrap(), place + 1);
        }
        let id = ObjectId::from_bytes([9; 12]);
        assert!(check_id(&encoded(id), &id.to_hex()).is_ok());
        assert!(check_id(&encoded(id.to_hex()), &id).is_ok());
        assert_eq!(check_id(&encoded(7.0), &7_u32).unwrap(), 0);
        assert_eq!(check_id(&encoded(f64::NAN), &f64::NAN).unwrap(), 0);
    }

    #[test]
    fn a_different_id_is_refused_naming_both() {
        let error = check_id(&encoded("o-1"), &"o-2").unwrap_err();
        assert!(error.to_string().contains("o-1") && error.to_string().contains("o-2"), "{error}");
        let without = codec::encode(&doc! { "id": "o-1" }).unwrap();
        let error = check_id(&without, &"o-1").unwrap_err();
        assert!(matches!(error, Error::NoId { .. }) && error.to_string().contains("o-1"), "{error}");
        for (own, other) in [(Bson::Int32(1), Bson::from("1")), (Bson::Null, Bson::Int32(0))] {
            assert!(check_id(&encoded(other), &own).is_err());
        }
    }

    #[test]
    fn a_number_and_a_name_have_no_other_form() {
        for id in [Bson::Int32(1), "o-1".into(), Bson::Null, doc! { "a": 1 }.into(), true.into()] {
            assert_eq!(other_forms(&id), []);
        }
    }

    #[derive(Serialize, Deserialize)]
    struct Optional {
        #[serde(rename = "_id")]
        id: Option<ObjectId>,
        n: i32,
    }

    #[derive(Serialize, Deserialize)]
    struct Any {
        #[serde(rename = "_id")]
        id: Bson,
        n: i32,
    }

    #[test]
    fn a_missing_optional_id_differs_from_null() {
        let null = encoded(Bson::Null);
        assert!(is_unset::<Optional>(&null));
        assert!(!is_unset::<Any>(&null));
        assert!(!is_unset::<Optional>(&encoded(ObjectId::new())));
    }
}

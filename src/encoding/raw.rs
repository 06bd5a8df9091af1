//! Reads the fields and elements of raw documents and arrays, using only types that both BSON versions offer.

use std::collections::HashMap;

use mongodb::bson::{Bson, RawArray, RawBsonRef, RawDocument};

use crate::encoding::codec::CodecError;

/// Returns the fields of a document in order.
pub(crate) fn fields(document: &RawDocument) -> Result<Vec<(&str, RawBsonRef<'_>)>, CodecError> {
    let mut fields = Vec::new();
    for field in document {
        let (name, value) = field.map_err(CodecError::new)?;
        fields.push((text(name), value));
    }
    Ok(fields)
}

/// Returns the fields of a document by name. If several fields have the same name, the first of them is used. The value
/// is `None` if it can't be read.
pub(crate) fn fields_by_name(document: &RawDocument) -> HashMap<&str, Option<RawBsonRef<'_>>> {
    let mut fields = HashMap::new();
    for element in document.iter_elements().flatten() {
        let name = text(element.key());
        fields.entry(name).or_insert(element.value().ok());
    }
    fields
}

/// The elements of an array.
pub(crate) fn items(array: &RawArray) -> Result<Vec<RawBsonRef<'_>>, CodecError> {
    array.into_iter().map(|item| item.map_err(CodecError::new)).collect()
}

/// Converts a raw value to an owned value.
pub(crate) fn owned(value: RawBsonRef<'_>) -> Result<Bson, CodecError> {
    Bson::try_from(value).map_err(CodecError::new)
}

/// Returns a field's name as text. The name is a `&str` in one BSON version and a C string in the other.
pub(crate) fn text<N: AsRef<str> + ?Sized>(name: &N) -> &str {
    name.as_ref()
}

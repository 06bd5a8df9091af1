//! Converts values to the bytes of a document, and back.
//!
//! Aggregates are converted directly to bytes, as in the driver's own `Collection<T>`, so that a type has the same BSON
//! form here and in the driver (a `uuid::Uuid` is binary, not text). Messages have a different form: see
//! [`payload`](crate::encoding::payload).

use base64::Engine;
use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::encoding::driver_bson;

/// A value could not be converted to or from BSON.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(pub(crate) String);

impl CodecError {
    pub(crate) fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl serde::ser::Error for CodecError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::new(message)
    }
}

impl serde::de::Error for CodecError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::new(message)
    }
}

/// Encodes a value that is a document at its top level.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<RawDocumentBuf, CodecError> {
    let bytes = driver_bson::encode(value).map_err(CodecError)?;
    RawDocumentBuf::from_bytes(bytes).map_err(CodecError::new)
}

/// Decodes a document.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    driver_bson::decode(bytes).map_err(CodecError)
}

/// Encodes a value, which need not be a document.
pub(crate) fn encode_value<T: Serialize + ?Sized>(value: &T) -> Result<Bson, CodecError> {
    #[derive(Serialize)]
    struct Wrapped<'a, T: ?Sized> {
        v: &'a T,
    }
    let raw = encode(&Wrapped { v: value })?;
    let element = raw.get("v").map_err(CodecError::new)?;
    element
        .ok_or_else(|| CodecError("the value serializes to no BSON value".into()))?
        .try_into()
        .map_err(CodecError::new)
}

/// Decodes a value, which need not be a document.
pub(crate) fn decode_value<T: DeserializeOwned>(value: &Bson) -> Result<T, CodecError> {
    #[derive(Deserialize)]
    struct Wrapped<T> {
        v: T,
    }
    let raw = encode(&mongodb::bson::doc! { "v": value.clone() })?;
    decode::<Wrapped<T>>(raw.as_bytes()).map(|wrapped| wrapped.v)
}

/// The range of milliseconds since 1970 that RFC 3339 can write, which is the years 0 to 9999.
const RFC_3339: std::ops::RangeInclusive<i64> = -62_167_219_200_000..=253_402_300_799_999;

/// Formats a date as RFC 3339. Returns `None` outside the years 0 to 9999, because for such dates one version of `bson`
/// fails and the other version writes a different date.
pub fn rfc3339(date: DateTime) -> Option<String> {
    let writable = RFC_3339.contains(&date.timestamp_millis());
    writable.then(|| date.try_to_rfc3339_string().ok()).flatten()
}

/// Decodes a raw document into an owned document.
pub(crate) fn to_document(raw: &mongodb::bson::RawDocument) -> Result<Document, CodecError> {
    raw.try_into().map_err(CodecError::new)
}

/// Encodes bytes in base64 with padding (RFC 4648, 4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Decodes the output of [`base64`].
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_encoded_exactly_or_refused() {
        let written = |millis| rfc3339(DateTime::from_millis(millis));
        assert_eq!(written(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(written(*RFC_3339.start()).as_deref(), Some("0000-01-01T00:00:00Z"));
        assert_eq!(written(*RFC_3339.end()).as_deref(), Some("9999-12-31T23:59:59.999Z"));
        for outside in [i64::MIN, RFC_3339.start() - 1, RFC_3339.end() + 1, i64::MAX] {
            assert_eq!(written(outside), None);
        }
    }
}

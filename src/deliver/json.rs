//! Writes payloads as JSON, and defines the form of each BSON type on the wire.
//!
//! A message is stored in serde's human-readable form, so its body equals the output of `serde_json` for the same
//! struct, with three exceptions. Bytes and BSON's own types are written as in the table. An `f32` is written as its
//! shortest decimal, in the notation of an `f64`. Numbers that are not finite are written as strings, while
//! `serde_json` writes null.
//!
//! | BSON | [`PayloadFormat::Json`] |
//! |---|---|
//! | string, symbol | string |
//! | document, array | object (fields in their order), array |
//! | boolean, null | boolean, null |
//! | int32, int64 | number; beyond 2^53 a reader that keeps numbers as doubles loses digits |
//! | double | number, a whole one with `.0`; `"NaN"`, `"Infinity"`, `"-Infinity"` as strings |
//! | decimal128 | string of its digits: `"9.99"` |
//! | date | string, RFC 3339 in UTC with milliseconds: `"2024-02-29T12:00:00.000Z"`; outside the years 0 to 9999, which RFC 3339 can't write, a string of its milliseconds since 1970 |
//! | `ObjectId` | string of 24 hex digits |
//! | binary, subtype 4 (UUID) of 16 bytes | string: `"0190a0a1-…"` |
//! | binary, every other subtype | string, base64 with padding (RFC 4648, 4); old UUIDs of subtype 3 too, because their byte order is unknown |
//! | undefined | null |
//! | JavaScript | string of the code |
//! | JavaScript with scope | `{"$code": string, "$scope": object}` |
//! | regular expression | `{"$regularExpression": {"pattern": string, "options": string}}` |
//! | timestamp | `{"$timestamp": {"t": number, "i": number}}` |
//! | `DBPointer` | `{"$dbPointer": {"$ref": string, "$id": {"$oid": string}}}` |
//! | min key, max key | `{"$minKey": 1}`, `{"$maxKey": 1}` |
//!
//! Plain JSON loses type information: a reader that doesn't know the message's schema cannot distinguish a date from a
//! string. [`PayloadFormat::CanonicalExtendedJson`] keeps every type, as defined in MongoDB's [specification]; a
//! receiver that reads it with a BSON library gets exactly the value that was sent.
//!
//! [specification]: https://www.mongodb.com/docs/manual/reference/mongodb-extended-json/

use mongodb::bson::{Bson, DateTime, Document, spec::BinarySubtype};
use serde::{
    Serialize, Serializer,
    ser::{Error, SerializeMap, SerializeSeq},
};

use crate::encoding::{
    codec,
    extended_json::{self, double_word},
};

/// A payload nested deeper than this is refused. MongoDB guarantees 100 levels.
pub const MAX_DEPTH: usize = 200;

/// The format in which payloads are written. The content type of both formats is `application/json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum PayloadFormat {
    /// Plain JSON, as in the [module's](self) table.
    #[default]
    Json,
    /// MongoDB's canonical extended JSON: `{"$date": {"$numberLong": "…"}}`.
    CanonicalExtendedJson,
}

impl PayloadFormat {
    /// The MIME type of the output.
    pub fn content_type(self) -> &'static str {
        "application/json"
    }
}

/// Why a payload cannot be written as JSON. The error text never includes any of the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The payload is nested deeper than [`MAX_DEPTH`].
    #[error("the payload is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// The JSON writer refused the payload. No BSON value is known that the JSON writer refuses.
    #[error("the payload cannot be written as JSON")]
    Unwritable,
}

/// Writes a payload as JSON in UTF-8. The payload can be any BSON value.
///
/// # Errors
/// [`PayloadError::TooDeep`]. Never panics.
pub fn encode(payload: &Bson, format: PayloadFormat) -> Result<Vec<u8>, PayloadError> {
    check_depth(payload)?;
    serde_json::to_vec(&Json(payload, format)).map_err(|_| PayloadError::Unwritable)
}

/// Refuses payloads whose nesting could overflow the stack.
pub(crate) fn check_depth(payload: &Bson) -> Result<(), PayloadError> {
    if deeper_than(payload, MAX_DEPTH) {
        return Err(PayloadError::TooDeep);
    }
    Ok(())
}

/// Formats a date as RFC 3339 in UTC with milliseconds. Returns `None` for dates outside the years 0 to 9999.
pub(crate) fn rfc3339(date: DateTime) -> Option<String> {
    let text = codec::rfc3339(date)?;
    let whole = text.strip_suffix('Z')?;
    let (seconds, fraction) = whole.split_once('.').unwrap_or((whole, ""));
    Some(format!("{seconds}.{fraction:0<3}Z"))
}

fn deeper_than(value: &Bson, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else {
        return matches!(value, Bson::Document(_) | Bson::Array(_) | Bson::JavaScriptCodeWithScope(_));
    };
    match value {
        Bson::Document(document) => document.iter().any(|(_, value)| deeper_than(value, below)),
        Bson::Array(items) => items.iter().any(|item| deeper_than(item, below)),
        Bson::JavaScriptCodeWithScope(code) => code.scope.iter().any(|(_, value)| deeper_than(value, below)),
        _ => false,
    }
}

struct Json<'a>(&'a Bson, PayloadFormat);

struct Object<'a>(&'a Document, PayloadFormat);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(value, format) = *self;
        match value {
            Bson::Document(document) => Object(document, format).serialize(serializer),
            Bson::Array(items) => {
                let mut array = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| array.serialize_element(&Json(item, format)))?;
                array.end()
            }
            Bson::JavaScriptCodeWithScope(code) => {
                let mut object = serializer.serialize_map(Some(2))?;
                object.serialize_entry("$code", &code.code)?;
                object.serialize_entry("$scope", &Object(&code.scope, format))?;
                object.end()
            }
            leaf => match format {
                PayloadFormat::Json => plain(leaf, serializer),
                PayloadFormat::CanonicalExtendedJson => {
                    extended_json::canonical(leaf).map_err(Error::custom)?.serialize(serializer)
                }
            },
        }
    }
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, Json(value, self.1))))
    }
}

/// Writes a value without nested values.
fn plain<S: Serializer>(leaf: &Bson, serializer: S) -> Result<S::Ok, S::Error> {
    match leaf {
        Bson::Null | Bson::Undefined => serializer.serialize_unit(),
        Bson::Boolean(value) => serializer.serialize_bool(*value),
        Bson::Int32(number) => serializer.serialize_i32(*number),
        Bson::Int64(number) => serializer.serialize_i64(*number),
        Bson::Double(number) => match double_word(*number) {
            Some(word) => serializer.serialize_str(word),
            None => serializer.serialize_f64(*number),
        },
        Bson::String(text) | Bson::Symbol(text) | Bson::JavaScriptCode(text) => {
            serializer.serialize_str(text)
        }
        Bson::ObjectId(id) => serializer.serialize_str(&id.to_hex()),
        Bson::Decimal128(number) => serializer.serialize_str(&number.to_string()),
        Bson::DateTime(date) => {
            let text = rfc3339(*date).unwrap_or_else(|| date.timestamp_millis().to_string());
            serializer.serialize_str(&text)
        }
        Bson::Binary(binary) => match <[u8; 16]>::try_from(&binary.bytes[..]) {
            Ok(bytes) if binary.subtype == BinarySubtype::Uuid => {
                serializer.collect_str(&uuid::Uuid::from_bytes(bytes))
            }
            _ => serializer.serialize_str(&codec::base64(&binary.bytes)),
        },
        // For values that JSON can't represent, the driver writes extended JSON.
        rare => rare.serialize(serializer),
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use mongodb::bson::{Binary, Decimal128, JavaScriptCodeWithScope, Timestamp, Uuid, doc, oid::ObjectId};

    use super::*;

    fn written(value: impl Into<Bson>) -> String {
        String::from_utf8(encode(&value.into(), PayloadFormat::Json).unwrap()).unwrap()
    }

    fn binary(subtype: BinarySubtype, bytes: &[u8]) -> Bson {
        let bytes = bytes.to_vec();
        Bson::Binary(Binary { subtype, bytes })
    }

    fn nested(levels: usize) -> Bson {
        (0..levels).fold(Bson::Int32(1), |inner, level| match level % 2 {
            0 => Bson::Array(vec![inner]),
            _ => doc! { "a": inner }.into(),
        })
    }

    #[test]
    fn every_bson_type_is_written_by_the_table() {
        let id = ObjectId::from_bytes([0xab; 12]);
        let uuid = Uuid::from_bytes([0x11; 16]);
        let decimal = Decimal128::from_str("9.99").unwrap();
        let scope =
            JavaScriptCodeWithScope { code: "f()".into(), scope: doc! { "at": DateTime::from_millis(0) } };
        let extended = |json: &str| serde_json::from_str::<Bson>(json).unwrap();
        let regex = r#"{"$regularExpression":{"pattern":"^a","options":"i"}}"#;
        let pointer = r#"{"$dbPointer":{"$ref":"c","$id":{"$oid":"abababababababababababab"}}}"#;
        for (value, expected) in [
            (Bson::from("☃\u{0}\""), r#""☃\u0000\"""#),
            (Bson::Symbol("s".into()), r#""s""#),
            (doc! { "b": 1, "a": [true, Bson::Null] }.into(), r#"{"b":1,"a":[true,null]}"#),
            (Bson::Int32(-1), "-1"),
            (Bson::Int64(i64::MAX), "9223372036854775807"),
            (Bson::Double(0.1), "0.1"),
            (Bson::Double(2.0), "2.0"),
            (Bson::Double(-f64::NAN), r#""NaN""#),
            (Bson::Double(f64::INFINITY), r#""Infinity""#),
            (Bson::Double(f64::NEG_INFINITY), r#""-Infinity""#),
            (Bson::Decimal128(decimal), r#""9.99""#),
            (DateTime::from_millis(0).into(), r#""1970-01-01T00:00:00.000Z""#),
            (DateTime::from_millis(1_700_000_000_120).into(), r#""2023-11-14T22:13:20.120Z""#),
            (DateTime::from_millis(-1).into(), r#""1969-12-31T23:59:59.999Z""#),
            (DateTime::MAX.into(), r#""9223372036854775807""#),
            (DateTime::MIN.into(), r#""-9223372036854775808""#),
            (DateTime::from_millis(253_402_300_800_000).into(), r#""253402300800000""#),
            (id.into(), r#""abababababababababababab""#),
            (uuid.into(), r#""11111111-1111-1111-1111-111111111111""#),
            (binary(BinarySubtype::Uuid, &[1]), r#""AQ==""#),
            (binary(BinarySubtype::UuidOld, &[0; 16]), r#""AAAAAAAAAAAAAAAAAAAAAA==""#),
            (binary(BinarySubtype::Generic, &[0xfb, 0xff]), r#""+/8=""#),
            (binary(BinarySubtype::UserDefined(0x80), &[]), r#""""#),
            (Bson::Undefined, "null"),
            (Bson::JavaScriptCode("f()".into()), r#""f()""#),
            (
                Bson::JavaScriptCodeWithScope(scope),
                r#"{"$code":"f()","$scope":{"at":"1970-01-01T00:00:00.000Z"}}"#,
            ),
            (extended(regex), regex),
            (extended(pointer), pointer),
            (Bson::Timestamp(Timestamp { time: 7, increment: 2 }), r#"{"$timestamp":{"t":7,"i":2}}"#),
            (Bson::MinKey, r#"{"$minKey":1}"#),
            (Bson::MaxKey, r#"{"$maxKey":1}"#),
        ] {
            assert_eq!(written(value), expected);
        }
    }

    #[test]
    fn canonical_extended_json_round_trips_the_value() {
        let sent = Bson::from(doc! {
            "at": DateTime::MAX,
            "id": ObjectId::new(),
            "uuid": Uuid::new(),
            "list": [1i32, 1i64, 1.0, f64::INFINITY],
            "code": Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: String::new(), scope: doc! { "n": 1i64 } }),
        });
        let json = encode(&sent, PayloadFormat::CanonicalExtendedJson).unwrap();
        assert_eq!(serde_json::from_slice::<Bson>(&json).unwrap(), sent);
    }

    #[test]
    fn no_decimal_of_any_sixteen_bytes_panics() {
        let mut bytes = [0u8; 16];
        for _ in 0..20_000 {
            bytes.fill_with(|| fastrand::u8(..));
            written(Bson::Decimal128(Decimal128::from_bytes(bytes)));
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused() {
        for format in [PayloadFormat::Json, PayloadFormat::CanonicalExtendedJson] {
            assert!(encode(&nested(MAX_DEPTH), format).is_ok());
            assert_eq!(encode(&nested(MAX_DEPTH + 1), format), Err(PayloadError::TooDeep));
            assert_eq!(encode(&nested(5000), format), Err(PayloadError::TooDeep));
        }
    }
}

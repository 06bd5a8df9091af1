//! Converts BSON values to MongoDB's extended JSON, and back.
//!
//! The `bson` crate offers these conversions too, but version 3 offers them only with a feature that this
//! crate cannot turn on, because this crate uses BSON as `mongodb::bson`. The implementations of
//! `Serialize` and `Deserialize` in `bson` are always available. This module uses these implementations for
//! the rare types.

use mongodb::bson::{Bson, DateTime, Document};
use serde_json::{Map, Value, json};

use crate::encoding::codec;

/// The start of the year 10000, the first date that relaxed extended JSON no longer writes as text.
const BEYOND_TEXT: i64 = 253_402_300_800_000;

/// Converts a value to the canonical form of MongoDB's specification, which can be read back without a change of type.
pub fn canonical(value: &Bson) -> Result<Value, serde_json::Error> {
    Ok(match value {
        Bson::Document(document) => object_of(document, canonical)?,
        Bson::Array(items) => Value::Array(items.iter().map(canonical).collect::<Result<_, _>>()?),
        Bson::JavaScriptCodeWithScope(code) => {
            json!({ "$code": code.code, "$scope": object_of(&code.scope, canonical)? })
        }
        Bson::Int32(number) => json!({ "$numberInt": number.to_string() }),
        Bson::Int64(number) => json!({ "$numberLong": number.to_string() }),
        Bson::Double(number) => {
            let text = match double_word(*number) {
                Some(word) => word.to_owned(),
                None => format!("{number:?}"),
            };
            json!({ "$numberDouble": text })
        }
        Bson::DateTime(date) => json!({ "$date": { "$numberLong": date.timestamp_millis().to_string() } }),
        Bson::Binary(binary) => {
            let subtype = format!("{:02x}", u8::from(binary.subtype));
            json!({ "$binary": { "base64": codec::base64(&binary.bytes), "subType": subtype } })
        }
        rare => serde_json::to_value(rare)?,
    })
}

/// Converts a value to the relaxed form, in which numbers and dates are written as people write them.
fn relaxed(value: &Bson) -> Result<Value, serde_json::Error> {
    Ok(match value {
        Bson::Document(document) => object_of(document, relaxed)?,
        Bson::Array(items) => Value::Array(items.iter().map(relaxed).collect::<Result<_, _>>()?),
        Bson::JavaScriptCodeWithScope(code) => json!({ "$code": code.code, "$scope": code.scope }),
        Bson::Int32(number) => json!(number),
        Bson::Int64(number) => json!(number),
        Bson::Double(number) if number.is_finite() => json!(number),
        Bson::DateTime(date) => match text_of(*date) {
            Some(text) => json!({ "$date": text }),
            None => canonical(value)?,
        },
        other => canonical(other)?,
    })
}

/// Writes a value as text in the relaxed form.
pub fn relaxed_text(value: &Bson) -> String {
    relaxed(value).map_or_else(|_| value.to_string(), |json| json.to_string())
}

/// Reads canonical or relaxed extended JSON. Returns `None` if the input is neither.
pub fn read(json: Value) -> Option<Bson> {
    match json {
        Value::Number(number) => read_number(&number),
        Value::Array(items) => items.into_iter().map(read).collect::<Option<_>>().map(Bson::Array),
        Value::Object(fields) if fields.keys().any(|name| name.starts_with('$')) => {
            serde_json::from_value(Value::Object(fields)).ok()
        }
        Value::Object(fields) => {
            let mut document = Document::new();
            for (name, value) in fields {
                document.insert(name, read(value)?);
            }
            Some(Bson::Document(document))
        }
        plain => serde_json::from_value(plain).ok(),
    }
}

/// Reads a number into the smallest type that fits it.
fn read_number(number: &serde_json::Number) -> Option<Bson> {
    let Some(whole) = number.as_i64() else { return number.as_f64().map(Bson::Double) };
    match i32::try_from(whole) {
        Ok(small) => Some(Bson::Int32(small)),
        Err(_) => Some(Bson::Int64(whole)),
    }
}

/// Returns the text for a number that JSON cannot represent as a number.
pub(crate) fn double_word(number: f64) -> Option<&'static str> {
    match number {
        number if number.is_nan() => Some("NaN"),
        f64::INFINITY => Some("Infinity"),
        f64::NEG_INFINITY => Some("-Infinity"),
        _ => None,
    }
}

fn object_of(
    document: &Document,
    write: impl Fn(&Bson) -> Result<Value, serde_json::Error>,
) -> Result<Value, serde_json::Error> {
    let mut object = Map::new();
    for (name, value) in document {
        object.insert(name.clone(), write(value)?);
    }
    Ok(Value::Object(object))
}

/// Formats a date as text. Relaxed extended JSON does this only for dates from 1970 up to the year 9999.
fn text_of(date: DateTime) -> Option<String> {
    if !(0..BEYOND_TEXT).contains(&date.timestamp_millis()) {
        return None;
    }
    codec::rfc3339(date)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{
        Binary, Decimal128, JavaScriptCodeWithScope, Timestamp, doc, oid::ObjectId, spec::BinarySubtype,
    };

    use super::*;

    fn values() -> Vec<(Bson, Value, Value)> {
        let scope = JavaScriptCodeWithScope { code: "f".into(), scope: doc! { "n": 1i64 } };
        let same = |json: Value| (json.clone(), json);
        let both = |value: Bson, (canonical, relaxed): (Value, Value)| (value, canonical, relaxed);
        let binary = Binary { subtype: BinarySubtype::Generic, bytes: vec![0xfb, 0xff] };
        let oid = "abababababababababababab";
        vec![
            both("☃\u{0}".into(), same(json!("☃\u{0}"))),
            both(Bson::Null, same(json!(null))),
            both(true.into(), same(json!(true))),
            both(Bson::Int32(-5), (json!({ "$numberInt": "-5" }), json!(-5))),
            both(Bson::Int64(1 << 40), (json!({ "$numberLong": "1099511627776" }), json!(1u64 << 40))),
            both(Bson::Double(2.0), (json!({ "$numberDouble": "2.0" }), json!(2.0))),
            both(Bson::Double(-0.0), (json!({ "$numberDouble": "-0.0" }), json!(-0.0))),
            both(Bson::Double(f64::INFINITY), same(json!({ "$numberDouble": "Infinity" }))),
            both(
                DateTime::from_millis(500).into(),
                (json!({ "$date": { "$numberLong": "500" } }), json!({ "$date": "1970-01-01T00:00:00.5Z" })),
            ),
            both(DateTime::from_millis(-1).into(), same(json!({ "$date": { "$numberLong": "-1" } }))),
            both(
                DateTime::from_millis(BEYOND_TEXT).into(),
                same(json!({ "$date": { "$numberLong": BEYOND_TEXT.to_string() } })),
            ),
            both(binary.into(), same(json!({ "$binary": { "base64": "+/8=", "subType": "00" } }))),
            both(ObjectId::from_bytes([0xab; 12]).into(), same(json!({ "$oid": oid }))),
            both(
                Timestamp { time: 7, increment: 2 }.into(),
                same(json!({ "$timestamp": { "t": 7, "i": 2 } })),
            ),
            both(
                Bson::Decimal128(Decimal128::from_bytes([7; 16])),
                same(json!({ "$numberDecimal": Decimal128::from_bytes([7; 16]).to_string() })),
            ),
            both(Bson::Symbol("s".into()), same(json!({ "$symbol": "s" }))),
            both(Bson::JavaScriptCode("f".into()), same(json!({ "$code": "f" }))),
            both(
                scope.into(),
                (
                    json!({ "$code": "f", "$scope": { "n": { "$numberLong": "1" } } }),
                    json!({ "$code": "f", "$scope": { "n": 1 } }),
                ),
            ),
            both(Bson::Undefined, same(json!({ "$undefined": true }))),
            both(Bson::MinKey, same(json!({ "$minKey": 1 }))),
            both(Bson::MaxKey, same(json!({ "$maxKey": 1 }))),
            both(
                doc! { "b": [1], "a": { "c": 2i64 } }.into(),
                (
                    json!({ "b": [{ "$numberInt": "1" }], "a": { "c": { "$numberLong": "2" } } }),
                    json!({ "b": [1], "a": { "c": 2 } }),
                ),
            ),
        ]
    }

    #[test]
    fn each_type_is_written_by_the_specification() {
        for (value, expected, relaxed_text) in values() {
            assert_eq!(canonical(&value).unwrap(), expected);
            assert_eq!(relaxed(&value).unwrap(), relaxed_text);
        }
    }

    #[test]
    fn canonical_text_reads_back_the_same() {
        for (value, written, _) in values() {
            assert_eq!(read(written), Some(value));
        }
    }

    #[test]
    fn plain_numbers_are_read_into_the_smallest_type() {
        assert_eq!(read(json!(-5)), Some(Bson::Int32(-5)));
        assert_eq!(read(json!({ "a": -5_000_000_000i64 })), Some(doc! { "a": -5_000_000_000i64 }.into()));
        assert_eq!(read(json!(u64::MAX)), Some(Bson::Double(18_446_744_073_709_551_615.0)));
        assert_eq!(read(json!({ "$oid": "short" })), None);
        assert_eq!(read(json!({ "$numberInt": "5000000000" })), None);
    }
}

//! The type names under which some types with a special form pass through serde.

/// The struct names under which BSON's own types serialize as extended JSON, which is turned into the BSON type again.
pub(super) const BSON_TYPES: [&str; 13] = [
    "$oid",
    "$date",
    "$binary",
    "$timestamp",
    "$minKey",
    "$maxKey",
    "$code",
    "$codeWithScope",
    "$symbol",
    "$undefined",
    "$regularExpression",
    "$dbPointer",
    "$numberDecimal",
];
/// The newtype name under which `bson::Uuid` serializes.
pub(super) const BSON_UUID: &str = "$__bson_private_uuid";
/// The struct name under which `serde_json::value::RawValue` serializes its text.
pub(super) const RAW_JSON: &str = "$serde_json::private::RawValue";
/// The struct name under which `serde_json::Number` serializes its digits, with the feature `arbitrary_precision` of
/// `serde_json`.
pub(super) const JSON_NUMBER: &str = "$serde_json::private::Number";

//! A serializer to BSON that presents itself to serde as human-readable.

use mongodb::bson::{Binary, Bson, Document, spec::BinarySubtype};
use serde::{
    Deserialize, Serialize, Serializer,
    ser::{self, SerializeMap as _},
};

use super::{
    names::{BSON_TYPES, BSON_UUID, JSON_NUMBER, RAW_JSON},
    read::{Uuids, ValueReader},
};
use crate::{deliver::json::MAX_DEPTH, encoding::codec::CodecError};

/// Writes one value.
#[derive(Debug, Clone, Copy)]
pub(super) struct ValueWriter {
    /// The remaining levels of nesting. The limit prevents a value that contains itself from overflowing the stack.
    levels: usize,
}

impl ValueWriter {
    pub(super) fn new() -> Self {
        Self { levels: MAX_DEPTH }
    }

    fn inner(self) -> Result<Self, CodecError> {
        match self.levels.checked_sub(1) {
            Some(levels) => Ok(Self { levels }),
            None => Err(CodecError(format!("the value is nested deeper than {MAX_DEPTH} levels"))),
        }
    }

    fn list(self, len: Option<usize>, variant: Option<&'static str>) -> Result<ArrayWriter, CodecError> {
        // Limit the capacity, because the length is only a hint from the caller.
        let items = Vec::with_capacity(len.unwrap_or_default().min(1024));
        Ok(ArrayWriter { items, variant, writer: self.inner()? })
    }

    fn fields(self, shape: Shape) -> Result<ObjectWriter, CodecError> {
        Ok(ObjectWriter { document: Document::new(), name: None, shape, writer: self.inner()? })
    }
}

/// Converts an integer, and refuses an integer that doesn't fit into 64 bits, the size that BSON and most readers
/// support.
fn integer<I: TryInto<i64>>(number: I) -> Result<Bson, CodecError> {
    let number =
        number.try_into().map_err(|_| CodecError("an integer does not fit into 64 bits (signed)".into()))?;
    Ok(Bson::Int64(number))
}

impl Serializer for ValueWriter {
    type Ok = Bson;
    type Error = CodecError;
    type SerializeSeq = ArrayWriter;
    type SerializeTuple = ArrayWriter;
    type SerializeTupleStruct = ArrayWriter;
    type SerializeTupleVariant = ArrayWriter;
    type SerializeMap = ObjectWriter;
    type SerializeStruct = ObjectWriter;
    type SerializeStructVariant = ObjectWriter;

    fn is_human_readable(&self) -> bool {
        true
    }

    fn serialize_bool(self, value: bool) -> Result<Bson, CodecError> {
        Ok(Bson::Boolean(value))
    }

    fn serialize_i8(self, number: i8) -> Result<Bson, CodecError> {
        Ok(Bson::Int32(number.into()))
    }

    fn serialize_i16(self, number: i16) -> Result<Bson, CodecError> {
        Ok(Bson::Int32(number.into()))
    }

    fn serialize_i32(self, number: i32) -> Result<Bson, CodecError> {
        Ok(Bson::Int32(number))
    }

    fn serialize_i64(self, number: i64) -> Result<Bson, CodecError> {
        Ok(Bson::Int64(number))
    }

    fn serialize_i128(self, number: i128) -> Result<Bson, CodecError> {
        integer(number)
    }

    fn serialize_u8(self, number: u8) -> Result<Bson, CodecError> {
        Ok(Bson::Int32(number.into()))
    }

    fn serialize_u16(self, number: u16) -> Result<Bson, CodecError> {
        Ok(Bson::Int32(number.into()))
    }

    fn serialize_u32(self, number: u32) -> Result<Bson, CodecError> {
        Ok(Bson::Int64(number.into()))
    }

    fn serialize_u64(self, number: u64) -> Result<Bson, CodecError> {
        integer(number)
    }

    fn serialize_u128(self, number: u128) -> Result<Bson, CodecError> {
        integer(number)
    }

    /// Write the shortest decimal, such as `0.1`, instead of the exact value `0.10000000149011612`.
    #[allow(
        clippy::float_cmp,
        clippy::cast_possible_truncation,
        reason = "the comparison checks that rounding gives exactly the same number"
    )]
    fn serialize_f32(self, number: f32) -> Result<Bson, CodecError> {
        let exact = f64::from(number);
        let shortest = number.to_string().parse().unwrap_or(exact);
        // When the decimal is read back and rounded to 32 bits, the result must equal the original number.
        let same = shortest as f32 == number;
        Ok(Bson::Double(if same { shortest } else { exact }))
    }

    fn serialize_f64(self, number: f64) -> Result<Bson, CodecError> {
        Ok(Bson::Double(number))
    }

    fn serialize_char(self, value: char) -> Result<Bson, CodecError> {
        Ok(Bson::String(value.to_string()))
    }

    fn serialize_str(self, text: &str) -> Result<Bson, CodecError> {
        Ok(Bson::String(text.to_owned()))
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<Bson, CodecError> {
        Ok(Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }))
    }

    fn serialize_none(self) -> Result<Bson, CodecError> {
        Ok(Bson::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Bson, CodecError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Bson, CodecError> {
        Ok(Bson::Null)
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<Bson, CodecError> {
        Ok(Bson::Null)
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<Bson, CodecError> {
        Ok(Bson::String(variant.to_owned()))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Bson, CodecError> {
        let written = value.serialize(self)?;
        match &written {
            // The text comes from a `bson::Uuid`, which keeps its BSON type.
            Bson::String(text) if name == BSON_UUID => {
                let uuid = uuid::Uuid::parse_str(text).map_err(CodecError::new)?;
                let bytes = uuid.into_bytes().to_vec();
                Ok(Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes }))
            }
            _ => Ok(written),
        }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Bson, CodecError> {
        let mut fields = self.fields(Shape::Plain)?;
        fields.add(variant.to_owned(), value)?;
        fields.finish()
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<ArrayWriter, CodecError> {
        self.list(len, None)
    }

    fn serialize_tuple(self, len: usize) -> Result<ArrayWriter, CodecError> {
        self.list(Some(len), None)
    }

    fn serialize_tuple_struct(self, _name: &'static str, len: usize) -> Result<ArrayWriter, CodecError> {
        self.list(Some(len), None)
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<ArrayWriter, CodecError> {
        self.inner()?.list(Some(len), Some(variant))
    }

    fn serialize_map(self, _len: Option<usize>) -> Result<ObjectWriter, CodecError> {
        self.fields(Shape::Plain)
    }

    fn serialize_struct(self, name: &'static str, _len: usize) -> Result<ObjectWriter, CodecError> {
        let shape = match name {
            RAW_JSON => Shape::RawJson,
            JSON_NUMBER => Shape::JsonNumber,
            name if BSON_TYPES.contains(&name) => Shape::BsonType,
            _ => Shape::Plain,
        };
        self.fields(shape)
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<ObjectWriter, CodecError> {
        self.inner()?.fields(Shape::Variant(variant))
    }
}

/// An array that is being written.
pub(super) struct ArrayWriter {
    items: Vec<Bson>,
    /// The enum variant that the array belongs to, if any.
    variant: Option<&'static str>,
    writer: ValueWriter,
}

impl ArrayWriter {
    fn add<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), CodecError> {
        self.items.push(item.serialize(self.writer)?);
        Ok(())
    }

    fn finish(self) -> Bson {
        let array = Bson::Array(self.items);
        match self.variant {
            Some(variant) => variant_of(variant, array),
            None => array,
        }
    }
}

/// The value that a complete object is turned into.
enum Shape {
    Plain,
    /// The content of an enum's variant.
    Variant(&'static str),
    /// One of BSON's own types in extended JSON.
    BsonType,
    RawJson,
    JsonNumber,
}

/// An object that is being written.
pub(super) struct ObjectWriter {
    document: Document,
    /// The key of a map entry until its value is written.
    name: Option<String>,
    shape: Shape,
    writer: ValueWriter,
}

impl ObjectWriter {
    fn add<T: Serialize + ?Sized>(&mut self, name: String, value: &T) -> Result<(), CodecError> {
        if name.contains('\0') {
            return Err(CodecError(format!("the field name {name:?} has a NUL character")));
        }
        let value = value.serialize(self.writer)?;
        if self.document.contains_key(&name) {
            return Err(CodecError(format!("the field name {name:?} occurs twice")));
        }
        self.document.insert(name, value);
        Ok(())
    }

    fn finish(self) -> Result<Bson, CodecError> {
        match self.shape {
            Shape::Plain => Ok(Bson::Document(self.document)),
            Shape::Variant(variant) => Ok(variant_of(variant, Bson::Document(self.document))),
            Shape::BsonType => bson_type(&Bson::Document(self.document)),
            Shape::RawJson => {
                let value: serde_json::Value =
                    serde_json::from_str(only_text(&self.document)).map_err(CodecError::new)?;
                value.serialize(self.writer)
            }
            Shape::JsonNumber => json_number(only_text(&self.document)),
        }
    }
}

fn variant_of(variant: &'static str, content: Bson) -> Bson {
    let mut document = Document::new();
    document.insert(variant, content);
    Bson::Document(document)
}

fn bson_type(extended: &Bson) -> Result<Bson, CodecError> {
    let value = Bson::deserialize(ValueReader::new(extended, Uuids::AsStored))?;
    if let Bson::RegularExpression(regex) = &value
        && (regex.pattern.as_str().contains('\0') || regex.options.as_str().contains('\0'))
    {
        return Err(CodecError("a regular expression has a NUL character".into()));
    }
    Ok(value)
}

/// Returns the text in a struct with one field.
fn only_text(document: &Document) -> &str {
    document.values().next().and_then(Bson::as_str).unwrap_or_default()
}

fn json_number(digits: &str) -> Result<Bson, CodecError> {
    if let Ok(number) = digits.parse::<i64>() {
        return Ok(Bson::Int64(number));
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        return integer(digits.parse::<i128>().unwrap_or(i128::MAX));
    }
    digits.parse().map(Bson::Double).map_err(CodecError::new)
}

/// Writes the key of a map as `serde_json` does.
fn key<T: Serialize + ?Sized>(key: &T) -> Result<String, CodecError> {
    let mut map = serde_json::value::Serializer.serialize_map(Some(1)).map_err(CodecError::new)?;
    map.serialize_entry(key, &()).map_err(CodecError::new)?;
    let written = map.end().map_err(CodecError::new)?;
    let name = match written {
        serde_json::Value::Object(object) => object.into_iter().next().map(|(name, _)| name),
        _ => None,
    };
    name.ok_or_else(|| CodecError("a map's key serializes to no value".into()))
}

impl ser::SerializeMap for ObjectWriter {
    type Ok = Bson;
    type Error = CodecError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, name: &T) -> Result<(), CodecError> {
        self.name = Some(key(name)?);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        let name = self.name.take().ok_or_else(|| CodecError("a map's value has no key".into()))?;
        self.add(name, value)
    }

    fn end(self) -> Result<Bson, CodecError> {
        self.finish()
    }
}

macro_rules! list_of {
    ($trait:ident, $add:ident) => {
        impl ser::$trait for ArrayWriter {
            type Ok = Bson;
            type Error = CodecError;

            fn $add<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), CodecError> {
                self.add(item)
            }

            fn end(self) -> Result<Bson, CodecError> {
                Ok(self.finish())
            }
        }
    };
}

list_of!(SerializeSeq, serialize_element);
list_of!(SerializeTuple, serialize_element);
list_of!(SerializeTupleStruct, serialize_field);
list_of!(SerializeTupleVariant, serialize_field);

macro_rules! fields_of {
    ($trait:ident) => {
        impl ser::$trait for ObjectWriter {
            type Ok = Bson;
            type Error = CodecError;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), CodecError> {
                self.add(name.to_owned(), value)
            }

            fn end(self) -> Result<Bson, CodecError> {
                self.finish()
            }
        }
    };
}

fields_of!(SerializeStruct);
fields_of!(SerializeStructVariant);

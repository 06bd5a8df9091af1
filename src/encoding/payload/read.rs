//! A deserializer from BSON that presents itself to serde as human-readable.

use mongodb::bson::{Binary, Bson, spec::BinarySubtype};
use serde::{
    Deserializer,
    de::{
        Error as _, IntoDeserializer, Visitor,
        value::{BorrowedStrDeserializer, MapAccessDeserializer, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};

use super::names::{BSON_UUID, RAW_JSON};
use crate::{
    deliver::json::{self, PayloadFormat},
    encoding::{codec::CodecError, extended_json},
};

/// The form in which a binary UUID is offered to a type that accepts any value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Uuids {
    AsStored,
    Text,
}

/// Reads one value.
#[derive(Debug, Clone, Copy)]
pub(super) struct ValueReader<'a> {
    value: &'a Bson,
    uuids: Uuids,
}

impl<'a> ValueReader<'a> {
    pub(super) fn new(value: &'a Bson, uuids: Uuids) -> Self {
        Self { value, uuids }
    }

    /// Returns the bytes if the value is a UUID, or has 16 generic bytes that a serializer may have written for a UUID.
    fn uuid(self) -> Option<&'a [u8; 16]> {
        match self.value {
            Bson::Binary(Binary { subtype: BinarySubtype::Uuid | BinarySubtype::Generic, bytes }) => {
                bytes.as_slice().try_into().ok()
            }
            _ => None,
        }
    }

    fn fields(
        self,
        document: &'a mongodb::bson::Document,
    ) -> impl serde::de::MapAccess<'a, Error = CodecError> {
        let fields = document.iter().map(move |(name, value)| (FieldName(name), Self { value, ..self }));
        MapDeserializer::new(fields)
    }
}

impl<'de> IntoDeserializer<'de, CodecError> for ValueReader<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for ValueReader<'de> {
    type Error = CodecError;

    fn is_human_readable(&self) -> bool {
        true
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        match self.value {
            Bson::Double(number) => visitor.visit_f64(*number),
            Bson::String(text) => visitor.visit_borrowed_str(text),
            Bson::Array(items) => {
                let items = items.iter().map(|value| Self { value, ..self });
                visitor.visit_seq(SeqDeserializer::new(items))
            }
            Bson::Document(document) => visitor.visit_map(self.fields(document)),
            Bson::Boolean(value) => visitor.visit_bool(*value),
            Bson::Null => visitor.visit_unit(),
            Bson::Int32(number) => visitor.visit_i32(*number),
            Bson::Int64(number) => visitor.visit_i64(*number),
            Bson::Binary(binary) => match self.uuid() {
                Some(bytes) if self.uuids == Uuids::Text => {
                    visitor.visit_string(uuid::Uuid::from_bytes(*bytes).to_string())
                }
                _ if binary.subtype == BinarySubtype::Generic => visitor.visit_borrowed_bytes(&binary.bytes),
                _ => extended(self.value, visitor),
            },
            rare => extended(rare, visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        match self.uuid() {
            // UUID types that accept text also accept bytes.
            Some(bytes) => visitor.visit_borrowed_bytes(bytes),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        match self.value {
            Bson::Binary(binary) => visitor.visit_borrowed_bytes(&binary.bytes),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        match self.value {
            Bson::Null | Bson::Undefined => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        match name {
            BSON_UUID => self.deserialize_str(visitor),
            RAW_JSON => {
                let text = json::encode(self.value, PayloadFormat::Json).map_err(CodecError::new)?;
                let text = String::from_utf8(text).map_err(CodecError::new)?;
                visitor.visit_map(MapDeserializer::new(std::iter::once((RAW_JSON, text))))
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        match self.value {
            Bson::String(variant) => visitor.visit_enum(BorrowedStrDeserializer::new(variant)),
            Bson::Document(document) if document.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(self.fields(document)))
            }
            Bson::Document(_) => {
                Err(CodecError::custom("invalid value: map, expected map with a single key"))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char unit unit_struct
        seq tuple tuple_struct map struct identifier
    }
}

/// Offers a value of one of BSON's own types as extended JSON, which the type's `Deserialize` expects.
fn extended<'de, V: Visitor<'de>>(value: &Bson, visitor: V) -> Result<V::Value, CodecError> {
    let json = extended_json::canonical(value).map_err(CodecError::new)?;
    json.deserialize_any(visitor).map_err(CodecError::new)
}

/// A field name or the key of a map. A key that is a number or a boolean is stored as text.
#[derive(Debug, Clone, Copy)]
struct FieldName<'a>(&'a str);

impl<'de> IntoDeserializer<'de, CodecError> for FieldName<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
            match self.0.parse() {
                Ok(value) => visitor.$visit(value),
                Err(_) => visitor.visit_borrowed_str(self.0),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for FieldName<'de> {
    type Error = CodecError;

    fn is_human_readable(&self) -> bool {
        true
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_borrowed_str(self.0)
    }

    parsed! {
        deserialize_bool visit_bool,
        deserialize_i8 visit_i8,
        deserialize_i16 visit_i16,
        deserialize_i32 visit_i32,
        deserialize_i64 visit_i64,
        deserialize_i128 visit_i128,
        deserialize_u8 visit_u8,
        deserialize_u16 visit_u16,
        deserialize_u32 visit_u32,
        deserialize_u64 visit_u64,
        deserialize_u128 visit_u128,
        deserialize_f32 visit_f32,
        deserialize_f64 visit_f64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        visitor.visit_enum(BorrowedStrDeserializer::new(self.0))
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

//! Reads stored values as far as possible, so that invalid UTF-8 affects only the value that contains it.
//!
//! Other programs write strings and field names that are not UTF-8, and MongoDB stores them. The decoders of the
//! `bson` crates refuse the whole document if it contains such strings or names. This module reads such text with
//! replacement characters and reports it as damage.
//!
//! **Caveat.** This module is slower than the decoders, so use it only for values that the decoders have refused.

use mongodb::bson::{Bson, Document, RawDocument};

use crate::encoding::bytes::{Builder, Element, Elements, elements, kind};

/// The bytes are not valid BSON. No server is known to store such bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// Finds the field with this name, even if earlier fields are damaged.
pub(crate) fn field<'a>(document: &'a RawDocument, name: &str) -> Result<Option<Element<'a>>, Broken> {
    let mut elements = elements(document);
    let found = elements.find(|element| element.name == name.as_bytes());
    if found.is_none() && !elements.is_exhausted() {
        return Err(Broken);
    }
    Ok(found)
}

/// Decodes a document, with replacement characters for invalid UTF-8 in names and text.
pub(crate) fn lossy(document: &RawDocument) -> Document {
    elements(document).map(|element| (element.text_name(), element.read_lossily())).collect()
}

impl<'a> Element<'a> {
    /// Returns the name, with replacement characters for invalid UTF-8.
    pub(crate) fn text_name(&self) -> String {
        String::from_utf8_lossy(self.name).into_owned()
    }

    /// The fields of a document.
    pub(crate) fn fields(&self) -> Option<Elements<'a>> {
        self.inner(kind::DOCUMENT).map(elements)
    }

    /// The elements of an array.
    pub(crate) fn items(&self) -> Option<Elements<'a>> {
        self.inner(kind::ARRAY).map(elements)
    }

    fn inner(&self, wanted: u8) -> Option<&'a RawDocument> {
        if self.kind != wanted {
            return None;
        }
        RawDocument::from_bytes(self.value).ok()
    }

    /// Decodes the value. Returns `None` if any part of it cannot be decoded.
    pub(crate) fn read(&self) -> Option<Bson> {
        let mut document = Builder::new();
        document.push(Element { name: b"v", ..*self });
        document.build().get("v").ok()??.try_into().ok()
    }

    /// Decodes the value, with replacement characters for invalid UTF-8 and null for undecodable parts.
    pub(crate) fn read_lossily(&self) -> Bson {
        if let Some(value) = self.read() {
            return value;
        }
        if let Some(document) = self.inner(kind::DOCUMENT) {
            return Bson::Document(lossy(document));
        }
        if let Some(items) = self.items() {
            return Bson::Array(items.map(|item| item.read_lossily()).collect());
        }
        if self.kind == kind::STRING {
            let text = self.value.get(4..self.value.len().saturating_sub(1)).unwrap_or_default();
            return Bson::String(String::from_utf8_lossy(text).into_owned());
        }
        Bson::Null
    }

    /// Returns the path of the first part that cannot be decoded and that is also in `known`. Returns `None` if there
    /// is no such part.
    pub(crate) fn damage(&self, known: &Bson) -> Option<String> {
        if std::str::from_utf8(self.name).is_err() {
            return Some(self.text_name());
        }
        if self.read().is_some() {
            return None;
        }

        let mut parts = match known {
            Bson::Document(_) => self.fields(),
            Bson::Array(_) => self.items(),
            _ => None,
        };
        let Some(parts) = &mut parts else {
            return Some(self.text_name());
        };
        for part in parts {
            if let Some(known) = part_of(known, &part.text_name())
                && let Some(path) = part.damage(known)
            {
                return Some(format!("{}.{path}", self.text_name()));
            }
        }
        None
    }
}

fn part_of<'a>(value: &'a Bson, name: &str) -> Option<&'a Bson> {
    match value {
        Bson::Document(document) => document.get(name),
        Bson::Array(items) => items.get(name.parse::<usize>().ok()?),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mongodb::bson::{RawDocumentBuf, doc};

    use super::*;
    use crate::encoding::codec;

    /// Encodes the document with each `##` replaced by `\xff\xfe`, which is not UTF-8.
    pub(crate) fn damaged(document: &Document) -> RawDocumentBuf {
        let mut bytes = codec::encode(document).unwrap().into_bytes();
        for at in 1..bytes.len() {
            if bytes[at - 1..=at] == *b"##" {
                bytes[at - 1..=at].copy_from_slice(b"\xff\xfe");
            }
        }
        RawDocumentBuf::from_bytes(bytes).unwrap()
    }

    #[test]
    fn invalid_utf8_costs_only_its_own_value() {
        let raw = damaged(&doc! { "a": "##", "b##": 1, "c": { "d": ["x", "##"] }, "e": 2 });
        let read: Vec<_> = elements(&raw).map(|element| element.read().is_some()).collect();
        assert_eq!(read, [false, true, false, true]);
        let shown = "\u{fffd}\u{fffd}";
        let expected = doc! { "a": shown, format!("b{shown}"): 1, "c": { "d": ["x", shown] }, "e": 2 };
        assert_eq!(lossy(&raw), expected);
        assert_eq!(field(&raw, "e").unwrap().unwrap().read(), Some(Bson::Int32(2)));
    }

    #[test]
    fn damage_counts_where_it_is_known() {
        let raw = damaged(&doc! { "c": { "d": ["x", { "y": "##" }], "z": 1 } });
        let field = self::field(&raw, "c").unwrap().unwrap();
        let damage = |known: Document| field.damage(&known.into());
        assert_eq!(damage(doc! { "d": ["x", { "y": "" }] }).as_deref(), Some("c.d.1.y"));
        assert_eq!(damage(doc! { "d": ["x", {}], "z": 1 }), None);
        assert_eq!(damage(doc! { "d": ["x"] }), None);
        let named = damaged(&doc! { "c": { "d##": 1 } });
        let field = self::field(&named, "c").unwrap().unwrap();
        assert_eq!(
            field.damage(&doc! { "d\u{fffd}\u{fffd}": 1 }.into()).as_deref(),
            Some("c.d\u{fffd}\u{fffd}")
        );
        assert_eq!(field.damage(&doc! {}.into()), None);
    }
}

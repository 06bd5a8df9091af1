//! Reads those serde attributes that decide what is stored.
//!
//! This module reports no errors, because serde's own derive macro reports attributes that it doesn't understand.

use proc_macro2::Span;
use syn::{
    Attribute, Expr, ExprGroup, ExprLit, Lit, Result, meta::ParseNestedMeta, parse::ParseStream,
    spanned::Spanned, token::Paren,
};

/// All `#[serde(…)]` attributes of a container, a field or a variant.
#[derive(Debug, Default)]
pub(crate) struct SerdeAttributes {
    given: Vec<SerdeAttribute>,
}

/// One key with its value.
#[derive(Debug)]
pub(crate) struct SerdeAttribute {
    pub(crate) key: String,
    pub(crate) span: Span,
    /// The text of `key = "…"`, which applies to writing and to reading.
    pub(crate) text: Option<String>,
    /// The text of `key(serialize = "…")`, which applies to writing only.
    serialize: Option<String>,
    /// The text of `key(deserialize = "…")`, which applies to reading only.
    deserialize: Option<String>,
}

/// A value for writing and a value for reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directions<T> {
    pub(crate) write: T,
    pub(crate) read: T,
}

impl SerdeAttributes {
    pub(crate) fn read(attributes: &[Attribute]) -> Self {
        let mut given = Vec::new();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
            // Unreadable attributes are left to serde.
            let _ = attribute.parse_nested_meta(|meta| {
                given.push(read_one(&meta)?);
                Ok(())
            });
        }
        Self { given }
    }

    pub(crate) fn find(&self, key: &str) -> Option<&SerdeAttribute> {
        self.all(key).next()
    }

    pub(crate) fn all(&self, key: &str) -> impl Iterator<Item = &SerdeAttribute> {
        self.given.iter().filter(move |attribute| attribute.key == key)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Returns the first attribute that has one of these keys.
    pub(crate) fn any_of(&self, keys: &[&str]) -> Option<&SerdeAttribute> {
        self.given.iter().find(|attribute| keys.contains(&attribute.key.as_str()))
    }

    /// Returns the values that a key such as `rename` has for writing and for reading.
    pub(crate) fn directions(&self, key: &str) -> Directions<Option<&str>> {
        let mut directions = Directions { write: None, read: None };
        for attribute in self.all(key) {
            let text = attribute.text.as_deref();
            directions.write = directions.write.or(attribute.serialize.as_deref()).or(text);
            directions.read = directions.read.or(attribute.deserialize.as_deref()).or(text);
        }
        directions
    }

    /// Whether the field is neither written nor read.
    pub(crate) fn is_skipped(&self) -> bool {
        self.has("skip") || (self.has("skip_serializing") && self.has("skip_deserializing"))
    }
}

fn read_one(meta: &ParseNestedMeta) -> Result<SerdeAttribute> {
    let key = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
    let mut attribute =
        SerdeAttribute { key, span: meta.path.span(), text: None, serialize: None, deserialize: None };

    if meta.input.peek(syn::Token![=]) {
        attribute.text = text(meta.value()?)?;
    } else if meta.input.peek(Paren) {
        meta.parse_nested_meta(|inner| {
            let said = if inner.input.peek(syn::Token![=]) { text(inner.value()?)? } else { None };
            if inner.path.is_ident("serialize") {
                attribute.serialize = said;
            } else if inner.path.is_ident("deserialize") {
                attribute.deserialize = said;
            }
            Ok(())
        })?;
    }
    Ok(attribute)
}

/// Parses a text in quotes. Returns `None` for other values.
fn text(input: ParseStream) -> Result<Option<String>> {
    let mut value: Expr = input.parse()?;
    // A text that was passed through another macro is wrapped in a group.
    while let Expr::Group(ExprGroup { expr, .. }) = value {
        value = *expr;
    }
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Ok(Some(text.value())),
        _ => Ok(None),
    }
}

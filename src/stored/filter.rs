//! The filter that selects one document.

use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use serde::Serialize;

use crate::encoding::bytes::{Builder, Element, kind};

/// Selects one document by its key, under further conditions.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Filter {
    /// For the driver.
    Plain(Document),
    /// For a key that a [`Document`] cannot hold. It fits a command as bytes, not the driver's own calls.
    Bytes(RawDocumentBuf),
}

impl From<Document> for Filter {
    fn from(filter: Document) -> Self {
        Self::Plain(filter)
    }
}

/// The condition on one element of a key: equality, even if its value has a meaning in queries.
pub(crate) fn push_equal(filter: &mut Builder, element: Element<'_>) {
    if !matches!(element.kind, kind::DOCUMENT | kind::REGULAR_EXPRESSION) {
        filter.push(element);
        return;
    }
    let mut equal = Builder::new();
    equal.push(Element { name: b"$eq", ..element });
    filter.push_document(element.name, &equal.build());
}

/// The value if a plain equality is safe, `{$eq: value}` if a query would read it as an expression.
pub(crate) fn equal_to(value: &Bson) -> Bson {
    match value {
        Bson::Document(_) | Bson::RegularExpression(_) => Bson::Document(doc! { "$eq": value.clone() }),
        _ => value.clone(),
    }
}

//! The filter that selects one document.

use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use serde::Serialize;

use crate::encoding::bytes::{Builder, Element, kind};

/// Selects one document by its key, under further conditions.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Filter {
    /// A filter for the driver's own calls.
    Plain(Document),
    /// A filter for a key that a [`Document`] cannot represent. Such a filter can be sent in a command as bytes, but
    /// not with the driver's own calls.
    Bytes(RawDocumentBuf),
}

impl From<Document> for Filter {
    fn from(filter: Document) -> Self {
        Self::Plain(filter)
    }
}

/// Adds the condition that the document's field with the element's name has the element's value, even if that value has
/// a special meaning in queries.
pub(crate) fn push_equal(filter: &mut Builder, element: Element<'_>) {
    if !matches!(element.kind, kind::DOCUMENT | kind::REGULAR_EXPRESSION) {
        filter.push(element);
        return;
    }
    let mut equal = Builder::new();
    equal.push(Element { name: b"$eq", ..element });
    filter.push_document(element.name, &equal.build());
}

/// Returns the value itself if a plain equality is safe, and `{$eq: value}` if a query would interpret the value as an
/// expression.
pub(crate) fn equal_to(value: &Bson) -> Bson {
    match value {
        Bson::Document(_) | Bson::RegularExpression(_) => Bson::Document(doc! { "$eq": value.clone() }),
        _ => value.clone(),
    }
}

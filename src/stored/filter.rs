//! The filter that selects one document.

use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use serde::Serialize;

use crate::encoding::bytes::{Builder, Element, kind};

/// Selects one document by its key, under further conditions.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Filter {
    /// As the driver takes it.
    Plain(Document),
    /// For a key that a [`Document`] cannot hold. The driver's own calls don't take it, a command as bytes does.
    Bytes(RawDocumentBuf),
}

impl From<Document> for Filter {
    fn from(filter: Document) -> Self {
        Self::Plain(filter)
    }
}

/// The condition on one element of a key: equality, whatever its value looks like to a query.
pub(crate) fn push_equal(filter: &mut Builder, element: Element<'_>) {
    if !matches!(element.kind, kind::DOCUMENT | kind::REGULAR_EXPRESSION) {
        filter.push(element);
        return;
    }
    let mut equal = Builder::new();
    equal.push(Element { name: b"$eq", ..element });
    filter.push_document(element.name, &equal.build());
}

/// The value where a plain equality is safe, `{$eq: value}` where a query would read it as an expression.
pub(crate) fn equal_to(value: &Bson) -> Bson {
    match value {
        Bson::Document(_) | Bson::RegularExpression(_) => Bson::Document(doc! { "$eq": value.clone() }),
        _ => value.clone(),
    }
}

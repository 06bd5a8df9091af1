//! Which document: its namespace and its key.

use std::fmt;

use mongodb::{
    Namespace,
    bson::{Bson, Document, doc},
};

use crate::codec;

/// One document, named the way a change event names it: a namespace and a *document key*.
///
/// The document key holds `_id` and, on a sharded collection, the fields of the shard key.
#[derive(Clone, PartialEq)]
pub struct DocumentRef {
    /// Database and collection.
    pub namespace: Namespace,
    /// `{ _id, ..shard key fields }`.
    pub key: Document,
}

impl DocumentRef {
    /// Names a document by its `_id` alone.
    pub fn by_id(namespace: Namespace, id: impl Into<Bson>) -> Self {
        Self { namespace, key: doc! { "_id": id.into() } }
    }

    /// The `_id`.
    pub fn id(&self) -> &Bson {
        self.key.get("_id").unwrap_or(&Bson::Null)
    }

    /// A filter that selects this document and no other.
    ///
    /// Values that a query would read as an expression (sub-documents, regular expressions) stand behind `$eq`.
    pub fn filter(&self) -> Document {
        self.key.iter().map(|(name, value)| (name.clone(), equal_to(value))).collect()
    }

    /// The `_id` as text, as it stands in the CloudEvents `subject` and in logs: a string as it is, an
    /// ObjectId or UUID by its usual text, a number by its digits, everything else as relaxed extended JSON.
    pub fn subject(&self) -> String {
        match self.id() {
            Bson::String(text) => text.clone(),
            Bson::ObjectId(id) => id.to_hex(),
            Bson::Int32(number) => number.to_string(),
            Bson::Int64(number) => number.to_string(),
            Bson::Boolean(value) => value.to_string(),
            Bson::DateTime(date) => {
                date.try_to_rfc3339_string().unwrap_or_else(|_| date.timestamp_millis().to_string())
            }
            Bson::Binary(binary) => match binary.to_uuid() {
                Ok(uuid) => uuid.to_string(),
                Err(_) => Bson::Binary(binary.clone()).into_relaxed_extjson().to_string(),
            },
            other => other.clone().into_relaxed_extjson().to_string(),
        }
    }

    /// Bytes that are equal exactly when the documents are the same: the key of in-memory maps.
    pub fn map_key(&self) -> Vec<u8> {
        let mut bytes = self.namespace.to_string().into_bytes();
        bytes.push(0);
        bytes.extend(codec::encode_document(&self.key).unwrap_or_default());
        bytes
    }
}

impl fmt::Display for DocumentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.subject())
    }
}

impl fmt::Debug for DocumentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentRef({self})")
    }
}

/// The value where a plain equality is safe, `{$eq: value}` where a query would read it as an expression.
pub(crate) fn equal_to(value: &Bson) -> Bson {
    match value {
        Bson::Document(_) | Bson::RegularExpression(_) => Bson::Document(doc! { "$eq": value.clone() }),
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_document_id_cannot_act_as_a_query_expression() {
        let namespace = Namespace::new("shop", "orders");
        let document = DocumentRef::by_id(namespace, doc! { "$gt": "" });
        assert_eq!(document.filter(), doc! { "_id": { "$eq": { "$gt": "" } } });
    }

    #[test]
    fn map_keys_tell_an_int_from_a_long_and_a_string() {
        let namespace = Namespace::new("shop", "orders");
        let keys: std::collections::HashSet<_> = [Bson::Int32(1), Bson::Int64(1), Bson::String("1".into())]
            .into_iter()
            .map(|id| DocumentRef::by_id(namespace.clone(), id).map_key())
            .collect();
        assert_eq!(keys.len(), 3);
    }
}

//! The token of a page: the place of the last message that was listed.
//!
//! A token is BSON in base64. It belongs to its query, and is refused with another one.

use std::hash::{DefaultHasher, Hash, Hasher};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, RawDocumentBuf, Uuid, doc},
};

use super::Scan;
use crate::{error::OperateError, query::Query};

/// The place of a document in a read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Position {
    /// In an index: the date, and the server's number of the document.
    Index { date: DateTime, record: Bson },
    /// By `_id`.
    Id(Bson),
}

/// The place of the last message that was listed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub(super) namespace: Namespace,
    /// The code of the read's part.
    pub(super) part: i32,
    pub(super) position: Position,
    /// The message, by its id, or by its place if it has none.
    pub(super) message: Option<Uuid>,
    pub(super) number: i32,
}

impl Place {
    pub(super) fn written(&self, query: &Query, scan: Scan) -> Option<String> {
        let mut token = doc! {
            "q": hash(query, scan),
            "d": &self.namespace.db,
            "c": &self.namespace.coll,
            "p": self.part,
            "n": self.number,
        };
        if let Some(id) = self.message {
            token.insert("m", id);
        }
        match &self.position {
            Position::Index { date, record } => {
                token.insert("t", *date);
                token.insert("r", record.clone());
            }
            Position::Id(id) => {
                token.insert("i", id.clone());
            }
        }
        let bytes = RawDocumentBuf::try_from(&token).ok()?;
        Some(URL_SAFE_NO_PAD.encode(bytes.as_bytes()))
    }

    pub(super) fn read(token: &str, query: &Query, scan: Scan) -> Result<Self, OperateError> {
        let damaged = || OperateError::PageToken("is damaged");
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| damaged())?;
        let raw = RawDocumentBuf::from_bytes(bytes).map_err(|_| damaged())?;
        let token = Document::try_from(&*raw).map_err(|_| damaged())?;
        if token.get_i64("q").map_err(|_| damaged())? != hash(query, scan) {
            return Err(OperateError::PageToken("belongs to another query"));
        }

        let position = match (token.get("i"), token.get("r")) {
            (Some(id), _) => Position::Id(id.clone()),
            (None, Some(record)) => Position::Index {
                date: *token.get_datetime("t").map_err(|_| damaged())?,
                record: record.clone(),
            },
            (None, None) => return Err(damaged()),
        };
        let text = |name: &str| token.get_str(name).map_err(|_| damaged());
        Ok(Self {
            namespace: Namespace::new(text("d")?, text("c")?),
            part: token.get_i32("p").map_err(|_| damaged())?,
            position,
            message: token.get("m").and_then(uuid),
            number: token.get_i32("n").map_err(|_| damaged())?,
        })
    }
}

fn uuid(value: &Bson) -> Option<Uuid> {
    match value {
        Bson::Binary(binary) => Some(Uuid::from_bytes(binary.bytes.as_slice().try_into().ok()?)),
        _ => None,
    }
}

/// Recognises a query. It only protects against mistakes.
fn hash(query: &Query, scan: Scan) -> i64 {
    let mut hasher = DefaultHasher::new();
    query.to_string().hash(&mut hasher);
    (scan == Scan::Allowed).hash(&mut hasher);
    hasher.finish().cast_signed()
}

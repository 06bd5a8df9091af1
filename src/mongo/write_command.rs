//! Builds write commands. Each command has statements of one kind on one collection.

use std::time::Duration;

use mongodb::bson::{Document, RawDocument, RawDocumentBuf};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    mongo::statement::{Operators, Update},
    stored::filter::Filter,
};

/// The kind of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WriteKind {
    Update,
    Insert,
    Delete,
}

impl WriteKind {
    /// Returns the name of the command and of its field for the statements.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Update => ("update", "updates"),
            Self::Insert => ("insert", "documents"),
            Self::Delete => ("delete", "deletes"),
        }
    }
}

/// The statement of an update in a command.
#[derive(Serialize)]
pub(crate) struct UpdateStatement<'a> {
    q: &'a Filter,
    u: &'a Operators,
    #[serde(rename = "arrayFilters", skip_serializing_if = "<[_]>::is_empty")]
    array_filters: &'a [RawDocumentBuf],
}

impl<'a> UpdateStatement<'a> {
    pub(crate) fn of(update: &'a Update) -> Self {
        Self { q: &update.filter, u: &update.operators, array_filters: &update.array_filters }
    }
}

/// The statement of a delete in a command.
#[derive(Serialize)]
pub(crate) struct DeleteStatement<'a> {
    pub(crate) q: &'a Filter,
    pub(crate) limit: i32,
}

/// A command with statements of one kind on one collection, serialized directly from its parts.
pub(crate) struct WriteCommand<'a> {
    pub(crate) kind: WriteKind,
    pub(crate) collection: &'a str,
    pub(crate) statements: Vec<&'a RawDocument>,
    /// `None` for a command that can't be repeated.
    pub(crate) retry: Option<Retry>,
    pub(crate) concern: Document,
    /// The server's time limit for the command, including the wait for the majority.
    pub(crate) longest: Duration,
}

/// The fields that make a command a retryable write.
pub(crate) struct Retry {
    pub(crate) number: i64,
    /// The ids of the statements under the transaction number.
    pub(crate) places: Vec<i32>,
}

impl Serialize for WriteCommand<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, statements) = self.kind.names();
        let mut command = serializer.serialize_map(None)?;
        command.serialize_entry(name, self.collection)?;
        command.serialize_entry(statements, &self.statements)?;
        command.serialize_entry("ordered", &false)?;
        if let Some(retry) = &self.retry {
            command.serialize_entry("txnNumber", &retry.number)?;
            command.serialize_entry("stmtIds", &retry.places)?;
        }
        command.serialize_entry("writeConcern", &self.concern)?;
        command.serialize_entry("maxTimeMS", &millis(self.longest))?;
        command.end()
    }
}

/// Converts a duration to milliseconds, the unit that MongoDB expects.
pub(crate) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{doc, rawdoc};

    use super::*;
    use crate::encoding::codec;

    #[test]
    fn a_command_is_written_as_the_server_takes_it() {
        let (first, second) = (rawdoc! { "q": { "_id": 1 } }, rawdoc! { "q": { "_id": 2 } });
        let command = WriteCommand {
            kind: WriteKind::Delete,
            collection: "orders",
            statements: vec![&first, &second],
            retry: Some(Retry { number: 7, places: vec![0, 1] }),
            concern: doc! { "w": "majority" },
            longest: Duration::from_secs(1),
        };
        let written = codec::to_document(&codec::encode(&command).unwrap()).unwrap();
        let expected = doc! {
            "delete": "orders",
            "deletes": [{ "q": { "_id": 1 } }, { "q": { "_id": 2 } }],
            "ordered": false,
            "txnNumber": 7_i64,
            "stmtIds": [0, 1],
            "writeConcern": { "w": "majority" },
            "maxTimeMS": 1_000_i64,
        };
        assert_eq!(written, expected);
    }
}

//! Sends updates that wait for one server and not for the majority. Such updates may be rolled back, and are not
//! retried here.

use std::time::Duration;

use mongodb::{
    Client, Namespace,
    bson::{Document, doc},
    error::Error,
};
use serde::Serialize;

use crate::{
    encoding::codec,
    mongo::{concern::primary, error_codes, write_command::millis},
};

/// The time limit of a command. A command that takes longer has probably met a document that a transaction has locked.
const LONGEST: Duration = Duration::from_secs(1);

/// An update command with statements on one collection.
#[derive(Serialize)]
struct LocalUpdate<'a, S> {
    update: &'a str,
    updates: &'a [S],
    ordered: bool,
    #[serde(rename = "writeConcern")]
    write_concern: Document,
    #[serde(rename = "maxTimeMS")]
    longest: i64,
}

/// The result of one statement in a reply.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LocalReply {
    /// The server has executed the statement.
    Executed,
    Refused(String),
    /// The statement may or may not have been executed.
    Open(String),
}

/// Sends these statements in one command, once.
pub(super) async fn send<S: Serialize>(
    client: &Client,
    namespace: &Namespace,
    statements: &[S],
) -> Result<Document, Error> {
    let command = LocalUpdate {
        update: &namespace.coll,
        updates: statements,
        ordered: false,
        write_concern: doc! { "w": 1 },
        longest: millis(LONGEST),
    };

    let command = codec::encode(&command).map_err(|error| error_codes::unencodable(error.to_string()))?;
    client.database(&namespace.db).run_raw_command(command).selection_criteria(primary()).await
}

/// Reads the result of each statement from a reply, because `run_command` returns `Ok` even if the reply refuses
/// single statements.
pub(super) fn read(reply: &Document, statements: usize) -> Vec<LocalReply> {
    let mut replies = vec![LocalReply::Executed; statements];
    let errors = reply.get_array("writeErrors").into_iter().flatten();
    for error in errors.filter_map(|error| error.as_document()) {
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        let Some(reply) = index.and_then(|index| replies.get_mut(index)) else { continue };

        let why = error.get_str("errmsg").unwrap_or("refused").to_owned();
        *reply = if error.get_i32("code").is_ok_and(error_codes::interrupts) {
            LocalReply::Open(why)
        } else {
            LocalReply::Refused(why)
        };
    }
    replies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::error_codes::{Verdict, verdict};

    #[tokio::test]
    async fn an_unencodable_clear_is_refused_with_a_reason() {
        let nowhere = mongodb::options::ClientOptions::builder().hosts(Vec::new()).build();
        let client = Client::with_options(nowhere).unwrap();
        let statement = doc! { "q": { "a\0b": 1 }, "u": {} };
        let error = send(&client, &Namespace::new("shop", "orders"), &[statement]).await.unwrap_err();
        assert_eq!(verdict(&error), Verdict::Refused);
        assert!(error.to_string().contains("null"), "{error}");
    }

    #[test]
    fn a_refused_statement_fails_alone() {
        let reply = doc! { "ok": 1, "n": 2, "writeErrors": [{ "index": 1, "code": 2, "errmsg": "no" }] };
        let expected = [LocalReply::Executed, LocalReply::Refused("no".into()), LocalReply::Executed];
        assert_eq!(read(&reply, 3), expected);
    }

    #[test]
    fn an_interrupted_statement_stays_open() {
        let interrupted = |code: i32| {
            let error = doc! { "index": 0, "code": code, "errmsg": "later" };
            read(&doc! { "ok": 1, "n": 0, "writeErrors": [error] }, 1)
        };
        for code in [10107, 189, 112] {
            assert_eq!(interrupted(code), [LocalReply::Open("later".into())]);
        }
    }
}

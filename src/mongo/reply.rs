//! Reads the results of a write command's statements from the reply.
//!
//! `run_command` returns `Ok` even for replies that refuse single statements or whose write concern was not met. A
//! reply also contains only the number of the statements that matched, and does not name these statements. If some
//! statements did not match, the same command is sent again with the same transaction number, and the reply lists in
//! `retriedStmtIds` the statements that were executed before.

use std::collections::HashMap;

use mongodb::{
    bson::{Bson, Document},
    error::{Error as DriverError, ErrorKind, WriteError, WriteFailure},
};

use crate::{
    encoding::codec,
    mongo::{error_codes, majority::OpTime, statement::WriteOutcome},
};

/// The server's code for a write whose wait for the majority took longer than `wtimeout`.
const WAIT_TOO_LONG: i32 = 64;
/// The server's code for a command that took longer than its `maxTimeMS`.
pub(crate) const OUT_OF_TIME: i32 = 50;

/// A decoded reply.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Number of statements that matched a document or inserted one.
    matched: usize,
    /// The errors, by index of the statement.
    errors: HashMap<usize, DriverError>,
    /// The ids of statements that were already executed before this command.
    retried: Vec<i32>,
    /// `None` if the write concern was met.
    pub(crate) concern: Option<Concern>,
    /// The primary's oplog time after it had executed the statements.
    pub(crate) written_at: Option<OpTime>,
}

/// Why a write concern was not met.
#[derive(Debug)]
pub(crate) struct Concern {
    /// Whether the write concern may still be met later.
    pub(crate) is_late: bool,
    pub(crate) text: String,
}

/// The results that a reply contains for its statements.
#[derive(Debug)]
pub(crate) enum Said {
    /// The result of each statement, in order. `None` if a statement was interrupted and may have been executed.
    Each(Vec<Option<WriteOutcome>>),
    /// Some statements matched and others did not. A repeat of the command shows which ones matched.
    Some,
    /// The reply contradicts itself.
    Nonsense,
}

impl Reply {
    pub(crate) fn read(reply: &Document) -> Result<Self, DriverError> {
        let mut errors = HashMap::new();
        for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
            errors.insert(number(error, "index").unwrap_or(usize::MAX), write_error(error)?);
        }
        let retried = reply.get_array("retriedStmtIds").into_iter().flatten().filter_map(Bson::as_i32);
        Ok(Self {
            matched: number(reply, "n").unwrap_or(usize::MAX),
            errors,
            retried: retried.collect(),
            concern: reply.get_document("writeConcernError").ok().map(Concern::read),
            written_at: OpTime::read(reply, "opTime"),
        })
    }

    /// Whether some of the statements had been executed before this command.
    pub(crate) fn is_repeated(&self) -> bool {
        !self.retried.is_empty()
    }

    /// Returns the results for the statements with these ids.
    pub(crate) fn of(mut self, places: &[i32]) -> Said {
        let without_error = places.len().saturating_sub(self.errors.len());
        if self.errors.keys().any(|index| *index >= places.len()) || self.matched > without_error {
            return Said::Nonsense;
        }

        let all_matched = self.matched == without_error;
        let retried_matched = self.matched == self.retried.len();
        if !all_matched && !retried_matched {
            return Said::Some;
        }

        let mut each = Vec::with_capacity(places.len());
        for (index, place) in places.iter().enumerate() {
            each.push(match self.errors.remove(&index) {
                Some(error) if error_codes::code(&error).is_some_and(error_codes::interrupts) => None,
                Some(error) => Some(WriteOutcome::Failed(error)),
                None if all_matched || self.retried.contains(place) => Some(WriteOutcome::Done),
                None => Some(WriteOutcome::Missed),
            });
        }
        Said::Each(each)
    }
}

impl Concern {
    fn read(concern: &Document) -> Self {
        let is_late = matches!(concern.get_i32("code"), Ok(WAIT_TOO_LONG | OUT_OF_TIME));
        Self { is_late, text: format!("the majority did not acknowledge the write: {concern}") }
    }
}

fn number(document: &Document, field: &str) -> Option<usize> {
    usize::try_from(document.get_i32(field).ok()?).ok()
}

/// Converts a refused statement to the driver's error.
pub(super) fn write_error(error: &Document) -> Result<DriverError, DriverError> {
    let raw = codec::encode(error).and_then(|raw| codec::decode::<WriteError>(raw.as_bytes()));
    match raw {
        Ok(error) => Ok(ErrorKind::Write(WriteFailure::WriteError(error)).into()),
        Err(unreadable) => {
            Err(error_codes::lost(format!("the answer about a statement cannot be read: {unreadable}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    fn said(reply: Document, places: &[i32]) -> String {
        match Reply::read(&reply).unwrap().of(places) {
            Said::Each(each) => each.iter().map(letter).collect(),
            Said::Some => "some".into(),
            Said::Nonsense => "nonsense".into(),
        }
    }

    fn letter(answer: &Option<WriteOutcome>) -> char {
        match answer {
            Some(WriteOutcome::Done) => 'd',
            Some(WriteOutcome::Missed) => 'm',
            Some(WriteOutcome::Failed(_)) => 'f',
            Some(WriteOutcome::Unknown(_)) => 'u',
            None => '?',
        }
    }

    #[test]
    fn a_reply_decides_where_all_or_none_matched() {
        assert_eq!(said(doc! { "ok": 1, "n": 3 }, &[0, 1, 2]), "ddd");
        assert_eq!(said(doc! { "ok": 1, "n": 0 }, &[0, 1]), "mm");
        let errors = doc! { "ok": 1, "n": 1, "writeErrors": [{ "index": 0, "code": 121 }, { "index": 2, "code": 11602 }] };
        assert_eq!(said(errors, &[0, 1, 2]), "fd?");
    }

    #[test]
    fn a_repeated_command_shows_which_matched() {
        assert_eq!(said(doc! { "ok": 1, "n": 2 }, &[0, 1, 2]), "some");
        assert_eq!(said(doc! { "ok": 1, "n": 2, "retriedStmtIds": [0, 2] }, &[0, 1, 2]), "dmd");
        // A statement that did not match before has matched now.
        assert_eq!(said(doc! { "ok": 1, "n": 2, "retriedStmtIds": [0] }, &[0, 1, 2]), "some");
    }

    #[test]
    fn a_reply_that_does_not_add_up_decides_nothing() {
        assert_eq!(said(doc! { "ok": 1 }, &[0]), "nonsense");
        assert_eq!(said(doc! { "ok": 1, "n": 2 }, &[0]), "nonsense");
        let beyond = doc! { "ok": 1, "n": 0, "writeErrors": [{ "index": 2, "code": 121 }] };
        assert_eq!(said(beyond, &[0, 1]), "nonsense");
        let both = doc! { "ok": 1, "n": 1, "writeErrors": [{ "index": 0, "code": 121 }] };
        assert_eq!(said(both, &[0]), "nonsense");
    }

    #[test]
    fn a_late_majority_differs_from_a_lost_one() {
        let late = |code: i32| {
            let reply = doc! { "ok": 1, "n": 1, "writeConcernError": { "code": code, "errmsg": "" } };
            Reply::read(&reply).unwrap().concern.unwrap().is_late
        };
        assert!(late(64) && late(50));
        assert!(!late(91) && !late(11602));
    }
}

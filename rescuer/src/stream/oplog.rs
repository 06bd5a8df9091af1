//! Measures how much time the oplog covers, and how far the position is from the oplog's end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::internal::error_codes;
use mongodb::{
    bson::{Document, doc},
    error::Error,
};

use crate::{
    classify,
    halt::Run,
    leadership::term::Term,
    mongo::{Mongo, primary},
    observe::{warning::Warning, window::Window},
};

/// The interval at which the ages are updated.
const TICK: Duration = Duration::from_secs(1);
/// The interval at which the first and the last entry of the oplog are read.
const READ: Duration = Duration::from_secs(10);
/// The message of the first oplog entry of a replica set that has not dropped any entry yet.
const INITIATING: &str = "initiating set";

/// Decides whether a warning is needed.
fn judge(window: Window, delay: Duration, age: Option<Duration>) -> Option<Warning> {
    if window.whole {
        return None;
    }
    let length = window.length();
    if delay * 2 >= length {
        return Some(Warning::OplogShort { delay, window: length });
    }
    match age {
        Some(behind) if behind >= length / 4 * 3 => Some(Warning::PositionFarBack { behind, window: length }),
        _ => None,
    }
}

/// Watches the oplog until a stop.
pub(crate) async fn watch(term: Arc<Term>) {
    // Only a stop ends the watch.
    let _ = watch_on(&term).await;
}

async fn watch_on(term: &Term) -> Run<()> {
    let mut read: Option<Instant> = None;
    loop {
        if let Ok(now) = term.unless_stopped(term.mongo.now()).await? {
            let age = term.report.tick(now);
            if read.is_none_or(|read| read.elapsed() >= READ) {
                read = Some(Instant::now());
                let window = term.unless_stopped(read_window(&term.mongo)).await?;
                report(term, window, age);
            }
        }
        term.sleep(TICK).await?;
    }
}

fn report(term: &Term, window: Result<Window, Error>, age: Option<Duration>) {
    match window {
        Ok(window) => {
            term.report.window(Some(window));
            if let Some(warning) = judge(window, term.plan.delay, age) {
                term.report.warn(warning);
            }
        }
        Err(error) => {
            term.report.window(None);
            // The server answered but refuses the read, so the server is not unreachable.
            if error_codes::code(&error).is_some() && !classify::is_transient(&error) {
                term.report.warn(Warning::OplogUnknown { error: classify::text(&error) });
            }
        }
    }
}

async fn read_window(mongo: &Mongo) -> Result<Window, Error> {
    let first = end(mongo, 1).await?;
    let last = end(mongo, -1).await?;
    let message = first.get_document("o").and_then(|entry| entry.get_str("msg"));
    Ok(Window {
        first: seconds(&first)?,
        last: seconds(&last)?,
        whole: message.is_ok_and(|message| message == INITIATING),
    })
}

/// The oplog's first entry if `direction` is 1, and its last entry if `direction` is -1.
async fn end(mongo: &Mongo, direction: i32) -> Result<Document, Error> {
    let oplog = mongo.database("local").collection::<Document>("oplog.rs");
    let entry = oplog
        .find_one(doc! {})
        .sort(doc! { "$natural": direction })
        .projection(doc! { "ts": 1, "o.msg": 1 })
        .selection_criteria(primary())
        .await?;
    Ok(entry.unwrap_or_default())
}

fn seconds(entry: &Document) -> Result<u32, Error> {
    let time = entry.get_timestamp("ts").map_err(|_| Error::custom("an entry of the oplog has no time"))?;
    Ok(time.time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_oplogs_and_late_positions_are_warned_of() {
        let window = Window { first: 1000, last: 1100, whole: false };
        let seconds = Duration::from_secs;
        assert_eq!(judge(window, seconds(49), Some(seconds(49))), None);
        let short = Warning::OplogShort { delay: seconds(50), window: seconds(100) };
        assert_eq!(judge(window, seconds(50), None), Some(short));
        let far = Warning::PositionFarBack { behind: seconds(75), window: seconds(100) };
        assert_eq!(judge(window, seconds(15), Some(seconds(75))), Some(far));
        assert_eq!(judge(Window { whole: true, ..window }, seconds(500), None), None);
    }
}

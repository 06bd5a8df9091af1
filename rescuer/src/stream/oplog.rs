//! How far the oplog reaches back, and how far the position is from its end.

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
    Warning, classify,
    leadership::term::{Context, primary},
};

/// How often the ages are brought up to date.
const TICK: Duration = Duration::from_secs(1);
/// How often the oplog is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// The oldest and the newest second of the oplog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// Nothing was dropped from it yet: it will reach back further than it does now.
    pub(crate) whole: bool,
}

impl Window {
    fn length(self) -> Duration {
        Duration::from_secs(u64::from(self.last.saturating_sub(self.first)))
    }
}

/// What there is to warn of.
pub(crate) fn judge(window: Window, delay: Duration, age: Option<Duration>) -> Option<Warning> {
    if window.whole {
        return None;
    }
    let length = window.length();
    match age {
        _ if delay * 2 >= length => Some(Warning::OplogShort { delay, window: length }),
        Some(behind) if behind >= length / 4 * 3 => Some(Warning::PositionFarBack { behind, window: length }),
        _ => None,
    }
}

/// Watches until told to stop.
pub(crate) async fn watch(context: Arc<Context>) {
    let mut looked: Option<Instant> = None;
    while !context.stop.is_cancelled() {
        if let Ok(now) = context.clock.now().await {
            let age = context.report.tick(now);
            if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
                looked = Some(Instant::now());
                context.stop.run_until_cancelled(look_and_warn(&context, age)).await;
            }
        }
        context.stop.run_until_cancelled(tokio::time::sleep(TICK)).await;
    }
}

async fn look_and_warn(context: &Context, age: Option<Duration>) {
    match look(context).await {
        Ok(window) => {
            context.report.window(Some(window));
            if let Some(warning) = judge(window, context.plan.delay, age) {
                context.report.warn(warning);
            }
        }
        Err(error) => {
            context.report.window(None);
            // Refused, and not merely out of reach.
            if error_codes::code(&error).is_some() && !classify::passes(&error) {
                context.report.warn(Warning::OplogUnknown { error: classify::text(&error) });
            }
        }
    }
}

async fn look(context: &Context) -> Result<Window, Error> {
    let oplog = context.client.database("local").collection::<Document>("oplog.rs");
    let end = |direction: i32| {
        oplog
            .find_one(doc! {})
            .sort(doc! { "$natural": direction })
            .projection(doc! { "ts": 1, "o.msg": 1 })
            .selection_criteria(primary())
    };
    let (first, last) = (end(1).await?.unwrap_or_default(), end(-1).await?.unwrap_or_default());
    let seconds = |entry: &Document| entry.get_timestamp("ts").map(|time| time.time);
    let no_time = |_| Error::custom("an entry of the oplog has no time");
    let message = first.get_document("o").and_then(|o| o.get_str("msg"));
    Ok(Window {
        first: seconds(&first).map_err(no_time)?,
        last: seconds(&last).map_err(no_time)?,
        whole: message.is_ok_and(|message| message == "initiating set"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_within_reach_of_the_oplog_and_a_position_near_its_end_are_warned_of() {
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

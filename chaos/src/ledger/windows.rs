//! Finds the window of promise P3 (docs/guarantees.md) that explains a duplicate.

use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use super::{evidence::Evidence, history::ClaimEnd};
use crate::{
    process::{CLAIM_LOST, CLAIMS_LOST},
    proxy::{Answer, Publish},
};

/// The windows of promise P3: the situations in which the promise allows a duplicate. The description of each window begins with
/// the letter that the promise gives it. `Outside` means that no window explains the duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Window {
    /// (a) The process that published the message died before a majority had the write that clears the message.
    Process,
    /// (a) The publisher's connection to RabbitMQ ended before RabbitMQ's confirm arrived.
    Connection,
    /// (a) Another MongoDB primary was elected before a majority had the write that clears the message.
    Primary,
    /// (b) The claim expired while its holder still worked, because the holder, MongoDB or the machine was slow.
    Claim,
    /// (c) The message was dead, and was replayed.
    Replay,
    /// (d) RabbitMQ refused the message, closed the channel, or answered late.
    Refusal,
    /// No window applies; the duplicate is a defect.
    Outside,
}

/// The first holder may log that its claim expired up to this long after the second publish, because a holder notices the end of
/// its claim only when it clears the message.
const CLEAR: Duration = Duration::from_secs(2);
/// The tolerance for times: the harness sees an event a little after the event, and a process reads an answer a little after the
/// answer has passed the link.
const SLACK: Duration = Duration::from_millis(300);
/// A confirm counts as late after this fraction of the claim's duration, because little time is then left to clear the message.
const LATE: f64 = 0.5;

/// A message, and the id of the document that sent it.
pub(super) struct Message<'a> {
    pub(super) id: Uuid,
    pub(super) document: &'a str,
}

/// Returns the window that explains why a message was published again; `None` if RabbitMQ returned the first copy because no
/// queue was bound, so that the receiver gets only one copy.
pub(super) fn window(
    of: &Message<'_>,
    first: &Publish,
    again: &Publish,
    seen: &Evidence<'_>,
) -> Option<Window> {
    let answered = match first.answer {
        Answer::Returned(_) => return None,
        Answer::Refused(_) => return Some(Window::Refusal),
        Answer::Confirmed(at) => Some(at),
        Answer::None => None,
    };

    let (from, until) = (before(first.at, SLACK), again.at + SLACK);
    // If an answer arrived, a failure of the connection after the answer cannot explain the second publish.
    let open = answered.map_or(until, |at| at + SLACK);
    let causes = [
        (seen.was_replayed(of.id, from, until), Window::Replay),
        (seen.process_ended(&first.process, from, until), Window::Process),
        (seen.traffic.lost_connection(&first.process, from, open), Window::Connection),
        (seen.traffic.was_closed(&first.process, from, open), Window::Refusal),
        (seen.primary_changed(before(from, Duration::from_secs(1)), until), Window::Primary),
    ];
    let cause = causes.into_iter().find(|(applies, _)| *applies);
    Some(cause.map_or_else(|| by_claim(of, first, again, answered, seen), |(_, window)| window))
}

/// Returns the window of a duplicate that no other event explains, judged by the claims that MongoDB's oplog shows.
fn by_claim(
    of: &Message<'_>,
    first: &Publish,
    again: &Publish,
    answered: Option<Instant>,
    seen: &Evidence<'_>,
) -> Window {
    let at = |time: Instant| seen.timeline.date(time);
    let slack = i64::try_from(SLACK.as_millis()).unwrap_or_default();
    let is_answered_after = |time: i64| answered.is_none_or(|answered| at(answered) + slack >= time);

    match seen.history.claim_end(of.id, at(first.at), at(again.at)) {
        Some(ClaimEnd::Held) if is_answered_after(at(again.at)) => Window::Refusal,
        Some(ClaimEnd::Released(time)) if is_answered_after(time) => Window::Refusal,
        Some(ClaimEnd::Expired { since, until }) => {
            let late = since + ((until - since) as f64 * LATE) as i64;
            let is_hindered = is_answered_after(late) || was_hindered(of, first, again, until - since, seen);
            if is_hindered { Window::Claim } else { Window::Outside }
        }
        // If a document has no room for a claim, a lease in another collection replaces the claim, and the history does not
        // include that collection.
        None if was_hindered(of, first, again, 0, seen) => Window::Claim,
        _ => Window::Outside,
    }
}

/// Whether the holder logged that its claim expired, or the holder, MongoDB or the machine was too slow to clear in time.
fn was_hindered(of: &Message<'_>, first: &Publish, again: &Publish, claim: i64, seen: &Evidence<'_>) -> bool {
    let claim = Duration::from_millis(u64::try_from(claim).unwrap_or_default());
    let (from, until) = (before(again.at, claim), again.at + CLEAR);
    let said = |what, of| seen.said(&first.process, what, of, from, until);
    said(CLAIM_LOST, of.document)
        || said(CLAIMS_LOST, "")
        || seen.was_hindered(&first.process, from.min(first.at), again.at)
}

fn before(time: Instant, by: Duration) -> Instant {
    time.checked_sub(by).unwrap_or(time)
}

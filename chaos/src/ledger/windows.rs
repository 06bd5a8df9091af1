//! Which window of P3 a duplicate falls into.

use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use super::{evidence::Evidence, history::ClaimEnd};
use crate::{
    process::{CLAIM_LOST, CLAIMS_LOST},
    proxy::{Answer, Publish},
};

/// The windows, in the words of the promise, and duplicates outside of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Window {
    /// (a) The process that published it died before the clear had the majority.
    Process,
    /// (a) Its connection to RabbitMQ ended before the confirm was there.
    Connection,
    /// (a) The primary changed before the clear had the majority.
    Primary,
    /// (b) The claim ran out, by the server's log, while its holder still worked, which something or somebody hindered.
    Claim,
    /// (c) It was replayed.
    Replay,
    /// (d) RabbitMQ refused it, closed the channel, or answered late.
    Refusal,
    /// None of these: a defect.
    Outside,
}

/// A claim that ran out is only noticed when the clear comes.
const CLEAR: Duration = Duration::from_secs(2);
/// Things happen a little before they are seen, and an answer that has passed a link has not been read yet.
const SLACK: Duration = Duration::from_millis(300);
/// After this part of a claim, a confirm leaves little time to clear.
const LATE: f64 = 0.5;

/// A message, and the document that sent it.
pub(super) struct Message<'a> {
    pub(super) id: Uuid,
    pub(super) document: &'a str,
}

/// Why a message was published again after it had been published; none when the first copy can't have arrived, because RabbitMQ had no queue for it.
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
    // An answer that was there protects from what happens to the connection afterwards.
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

/// The window of a copy without any other cause, by the claims that the server's log shows.
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
        // A document without room has its lease elsewhere.
        None if was_hindered(of, first, again, 0, seen) => Window::Claim,
        _ => Window::Outside,
    }
}

/// Whether the holder said that its claim ran out, or something kept it from clearing in time.
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

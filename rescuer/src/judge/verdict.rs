//! Decides, in a pure function, whether a document needs a command now.
//!
//! The rescuer asks the same question as every deliverer, [`deliverable()`], and one more: is the message old
//! enough? A message that was never tried belongs to the inline dispatcher until the message is `delay` old,
//! whether the change stream or the sweep found it. Without this rule, the rescuer would queue a frequently
//! saved document again and again, because such a document nearly always has a message that was saved just
//! now.
//!
//! | entry | when it is old enough |
//! |---|---|
//! | failed before, claimed by a dispatcher before, scheduled, or released | old enough once it is due |
//! | with `created_at` | `created_at` + delay |
//! | without `created_at`, but with a UUID of version 7 as its `id` | the time in the `id` + delay |
//! | without either, or with a time in the future | old enough: its age is unknown |
//! | without `available_at`, found by the stream | old enough, because the change is old enough |
//!
//! The sweep rarely reads entries without a date, so the stream doesn't leave such an entry to the sweep
//! merely because its writer's clock is fast. An entry whose date has not passed yet is left to the sweep,
//! which finds the entry once the date has passed.

use std::time::Duration;

use document_outbox::{
    DeliveryOrder,
    internal::{Entry, NotAnArray, Rules, Slot, deliverable, later, until},
};
use mongodb::bson::{DateTime, Uuid};

/// The largest expected difference between the clocks of servers and clients.
const AHEAD: Duration = Duration::from_secs(1);
/// The largest clock difference that the stream tolerates; it also never tolerates more than a
/// quarter of the delay.
const LONGEST_SLACK: Duration = Duration::from_millis(500);

/// The moment at which a document is judged.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Server time.
    pub now: DateTime,
    /// A message created at or before this time is old enough.
    pub old: DateTime,
    delay: Duration,
    found_by: FoundBy,
}

/// How a document was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FoundBy {
    /// The change stream, through a change that is itself old enough.
    Stream,
    Sweep,
}

impl Moment {
    /// A moment for the sweep, which will read the document again.
    pub fn sweeping(now: DateTime, delay: Duration) -> Self {
        Self { now, old: earlier(now, delay), delay, found_by: FoundBy::Sweep }
    }

    /// A moment for the change stream, which reads each change once. The message was created at
    /// about the time of the change, by a clock that may differ a little from the server's clock.
    pub fn following(now: DateTime, delay: Duration) -> Self {
        let slack = (delay / 4).min(LONGEST_SLACK);
        Self { now, old: earlier(now, delay.saturating_sub(slack)), delay, found_by: FoundBy::Stream }
    }
}

/// The state in which an outbox was found. While the state is unchanged, queueing the document
/// again would only repeat the command.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Head {
    id: [u8; 16],
    available_at: Option<i64>,
    counts: (i64, i64),
}

impl Head {
    /// Whether the entry has no date, so that not every round of the sweep reads it.
    pub fn is_undated(&self) -> bool {
        self.available_at.is_none()
    }
}

/// The judgement of a document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The state that needs a command; `None` if no command is needed.
    pub work: Option<Head>,
    /// When the first message to deliver became due for rescue, if known.
    pub due: Option<DateTime>,
    /// The duration of an inline dispatcher's claim, if it is longer than the delay.
    pub long_claim: Option<Duration>,
    /// Whether any entry that is not dead has no date.
    pub undated: bool,
    /// The number of malformed elements.
    pub unreadable: usize,
    /// The problem of the first malformed element.
    pub flaw: Option<String>,
}

/// Judges an outbox as it was read from the database.
pub fn judge(outbox: Result<Vec<Slot>, NotAnArray>, ordering: DeliveryOrder, moment: Moment) -> Verdict {
    let slots = match outbox {
        Ok(slots) => slots,
        Err(not_an_array) => {
            return Verdict { unreadable: 1, flaw: Some(not_an_array.to_string()), ..Verdict::default() };
        }
    };

    // The first entry that a deliverer would deliver and that is old enough.
    let rules = Rules { now: moment.now, ordering, limit: usize::MAX, serves: &|_| true };
    let found = deliverable(&slots, rules);
    let mut ready = found.entries.iter().copied().chain(found.crashed);
    let work = ready.find(|entry| is_old_enough(entry, moment));

    let mut verdict = Verdict {
        work: work.map(head),
        due: work.and_then(|entry| due(entry, moment)),
        unreadable: found.unreadable,
        ..Verdict::default()
    };

    // The loop reads all elements, because malformed ones are reported whether or not the document needs a
    // command.
    for slot in &slots {
        match slot {
            Slot::Entry(entry) => {
                verdict.undated |= is_undated(entry);
                verdict.long_claim = verdict.long_claim.or_else(|| long_claim(entry, moment));
            }
            Slot::Unreadable(unreadable) => {
                verdict.flaw.get_or_insert_with(|| unreadable.reason.clone());
            }
        }
    }
    verdict
}

fn head(entry: &Entry) -> Head {
    Head {
        id: entry.id.bytes(),
        available_at: entry.available_at.map(DateTime::timestamp_millis),
        counts: (entry.attempts, entry.claims),
    }
}

fn is_undated(entry: &Entry) -> bool {
    entry.dead.is_none() && entry.available_at.is_none()
}

/// Whether a deliverer has tried the entry, or a worker has claimed it.
fn was_tried(entry: &Entry) -> bool {
    entry.attempts > 0 || entry.claims > 0
}

/// When the entry was created, according to its own date or the time in its `id`.
fn made(entry: &Entry) -> Option<DateTime> {
    entry.created_at.or_else(|| time_in(&entry.id))
}

/// Whether an entry that is due is also old enough.
fn is_old_enough(entry: &Entry, moment: Moment) -> bool {
    if was_tried(entry) || was_postponed(entry) {
        return true;
    }
    // An entry without a date is as old as the change that showed it.
    if moment.found_by == FoundBy::Stream && entry.available_at.is_none() {
        return true;
    }

    match made(entry) {
        // A time in the future is ignored, so that no clock can delay a message.
        Some(made) => made <= moment.old || made > later(moment.now, AHEAD),
        None => true,
    }
}

/// When an entry became due for rescue.
fn due(entry: &Entry, moment: Moment) -> Option<DateTime> {
    let old_enough = made(entry).map(|made| later(made, moment.delay));
    if was_tried(entry) || was_postponed(entry) {
        entry.available_at.or(old_enough)
    } else {
        old_enough.max(entry.available_at)
    }
}

/// The duration of an inline dispatcher's claim, if it is longer than the delay. A claim with a
/// claim count belongs to a worker and is ignored.
fn long_claim(entry: &Entry, moment: Moment) -> Option<Duration> {
    let is_inline = entry.claimed_by.is_some() && !was_tried(entry);
    let (made, ends) = (entry.created_at?, entry.available_at?);
    let lasts = until(made, ends);

    let is_long = is_inline && ends > moment.now && lasts > moment.delay;
    is_long.then_some(lasts)
}

/// Whether the entry was scheduled by its writer or released by its claimer, so that no inline
/// dispatcher works on it.
fn was_postponed(entry: &Entry) -> bool {
    match (entry.created_at, entry.available_at) {
        (Some(made), Some(available)) => entry.claimed_by.is_none() && available > made,
        _ => false,
    }
}

/// The time in a UUID of version 7 (RFC 9562, 5.7).
fn time_in(id: &Uuid) -> Option<DateTime> {
    let id = uuid::Uuid::from_bytes(id.bytes());
    if id.get_version_num() != 7 {
        return None;
    }
    let millis = id.as_u128() >> 80;
    Some(DateTime::from_millis(i64::try_from(millis).unwrap_or(i64::MAX)))
}

fn earlier(date: DateTime, by: Duration) -> DateTime {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    DateTime::from_millis(date.timestamp_millis().saturating_sub(by))
}

#[cfg(test)]
mod tests {
    use document_outbox::internal::read_outbox;
    use mongodb::bson::{Bson, Document, doc};

    use super::*;

    const DELAY: Duration = Duration::from_secs(15);
    const NOW: i64 = 1_700_000_000_000;

    fn at(millis: i64) -> DateTime {
        DateTime::from_millis(NOW + millis)
    }

    fn verdict(entries: Vec<Document>, ordering: DeliveryOrder) -> Verdict {
        let outbox = Bson::Array(entries.into_iter().map(Bson::Document).collect());
        judge(read_outbox(Some(&outbox)), ordering, Moment::sweeping(at(0), DELAY))
    }

    fn wants_command(extra: Document) -> bool {
        let mut entry = doc! { "id": Uuid::new(), "type": "order.placed" };
        entry.extend(extra);
        verdict(vec![entry], DeliveryOrder::Ordered).work.is_some()
    }

    #[test]
    fn an_untried_message_is_left_alone_for_the_delay() {
        let made = |millis| doc! { "created_at": at(millis), "available_at": at(millis) };
        assert!(!wants_command(made(-14_999)));
        assert!(wants_command(made(-15_000)));
    }

    #[test]
    fn an_ended_inline_claim_adds_nothing_to_the_delay() {
        let claimed = |made, until| {
            wants_command(doc! { "created_at": at(made), "available_at": at(until), "claimed_by": "p/1" })
        };
        assert!(claimed(-20_000, -10_000));
        assert!(!claimed(-12_000, -2_000));
        assert!(!claimed(-20_000, 1));
    }

    #[test]
    fn a_verdict_has_when_rescue_was_due() {
        let due = |extra: Document| {
            let mut entry = doc! { "id": Uuid::new(), "type": "order.placed" };
            entry.extend(extra);
            verdict(vec![entry], DeliveryOrder::Ordered).due
        };
        let made = doc! { "created_at": at(-60_000) };
        let with = |extra: Document| made.clone().into_iter().chain(extra).collect::<Document>();
        assert_eq!(due(with(doc! { "available_at": at(-60_000) })), Some(at(-45_000)));
        assert_eq!(due(with(doc! { "available_at": at(-9000), "claimed_by": "gone" })), Some(at(-9000)));
        assert_eq!(due(with(doc! { "available_at": at(-7000), "attempts": 1 })), Some(at(-7000)));
        assert_eq!(due(doc! {}), None);
    }

    #[test]
    fn an_inline_claim_that_outlasts_the_delay_is_reported() {
        let claim = |extra: Document| {
            let mut entry = doc! { "id": Uuid::new(), "type": "order.placed", "claimed_by": "p/1" };
            entry.extend(doc! { "created_at": at(-15_000), "available_at": at(5000) });
            entry.extend(extra);
            verdict(vec![entry], DeliveryOrder::Ordered).long_claim
        };
        assert_eq!(claim(doc! {}), Some(Duration::from_secs(20)));
        assert_eq!(claim(doc! { "claims": 1 }), None, "a worker's");
        assert_eq!(claim(doc! { "created_at": at(-5000) }), None);
        assert_eq!(claim(doc! { "available_at": at(-1) }), None, "it is over");
    }

    #[test]
    fn a_tried_or_postponed_entry_is_wanted_when_due() {
        let fresh = |extra: Document| {
            let mut entry = doc! { "created_at": at(-5000), "available_at": at(-1) };
            entry.extend(extra);
            wants_command(entry)
        };
        assert!(fresh(doc! { "attempts": 1 }));
        assert!(fresh(doc! { "claims": 1, "claimed_by": "crashed" }));
        assert!(fresh(doc! {}), "scheduled or released");
        assert!(!wants_command(doc! { "created_at": at(-5000), "available_at": at(1) }), "not due");
    }

    #[test]
    fn a_minimal_entry_has_the_age_of_its_id() {
        let id_made = |millis: i64| {
            let time = u64::try_from(NOW + millis).unwrap();
            let v7 = uuid::Builder::from_unix_timestamp_millis(time, &[7; 10]).into_uuid();
            wants_command(doc! { "id": Uuid::from_bytes(*v7.as_bytes()) })
        };
        assert!(id_made(-15_000));
        assert!(!id_made(-14_000));
        assert!(wants_command(doc! {}));
    }

    #[test]
    fn no_clock_that_is_ahead_puts_a_message_off() {
        let made = |millis| wants_command(doc! { "created_at": at(millis), "available_at": at(-1) });
        assert!(!made(900), "clocks differ a little");
        assert!(made(1001));
        let time = u64::try_from(NOW + 3_600_000).unwrap();
        let v7 = uuid::Builder::from_unix_timestamp_millis(time, &[7; 10]).into_uuid();
        assert!(wants_command(doc! { "id": Uuid::from_bytes(*v7.as_bytes()) }));
        assert!(wants_command(doc! { "created_at": at(3_600_000) }));
    }

    #[test]
    fn an_undated_entry_has_the_age_of_its_change() {
        let wants = |entry: Document, moment| {
            let mut whole = doc! { "id": Uuid::new(), "type": "order.placed", "created_at": at(-1000) };
            whole.extend(entry);
            let outbox = Bson::Array(vec![whole.into()]);
            judge(read_outbox(Some(&outbox)), DeliveryOrder::Ordered, moment).work.is_some()
        };
        let (stream, sweep) = (Moment::following(at(0), DELAY), Moment::sweeping(at(0), DELAY));
        assert!(wants(doc! {}, stream));
        assert!(!wants(doc! {}, sweep));
        assert!(!wants(doc! { "available_at": at(-1000) }, stream), "a later sweep finds it");
    }

    #[test]
    fn dead_and_unreadable_entries_make_no_command() {
        assert!(!wants_command(doc! { "dead_at": at(-1) }));
        let found = verdict(vec![doc! { "id": 7 }], DeliveryOrder::Ordered);
        assert_eq!((found.work.is_some(), found.unreadable), (false, 1));
        assert!(found.flaw.is_some_and(|flaw| flaw.contains("`id`")));
        let found =
            judge(read_outbox(Some(&"x".into())), DeliveryOrder::Ordered, Moment::sweeping(at(0), DELAY));
        assert_eq!((found.work.is_some(), found.unreadable), (false, 1));
        assert_eq!(
            judge(read_outbox(None), DeliveryOrder::Ordered, Moment::sweeping(at(0), DELAY)),
            Verdict::default()
        );
    }

    #[test]
    fn a_retrying_head_blocks_only_an_ordered_document() {
        let entry = |extra: Document| {
            let mut entry = doc! { "id": Uuid::new(), "type": "t", "created_at": at(-60_000) };
            entry.extend(extra);
            entry
        };
        let entries = vec![entry(doc! { "attempts": 1, "available_at": at(5) }), entry(doc! {})];
        assert!(verdict(entries.clone(), DeliveryOrder::Ordered).work.is_none());
        assert!(verdict(entries, DeliveryOrder::Unordered).work.is_some());
    }

    #[test]
    fn the_stream_forgives_clocks_up_to_half_a_second() {
        let old = |delay| Moment::following(at(0), delay).old;
        assert_eq!(old(DELAY), at(-14_500));
        assert_eq!(old(Duration::from_secs(1)), at(-750));
    }

    #[test]
    fn the_head_changes_with_every_claim_and_failure() {
        let id = Uuid::new();
        let head = |extra: Document| {
            let mut entry = doc! { "id": id, "type": "t" };
            entry.extend(extra);
            verdict(vec![entry], DeliveryOrder::Ordered).work.unwrap()
        };
        assert_eq!(head(doc! {}), head(doc! {}));
        assert_ne!(head(doc! {}), head(doc! { "available_at": at(-1) }));
        assert_ne!(head(doc! { "claims": 1 }), head(doc! { "claims": 2 }));
    }
}

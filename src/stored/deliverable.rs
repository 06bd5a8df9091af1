//! Decides which messages may be delivered now, in one pure function of an outbox and the time.
//!
//! The inline dispatcher, the dispatcher worker, the rescuer and operators all use this function, so they
//! cannot disagree on the order of a document's messages.
//!
//! The function reads the array in order and skips elements that are dead, malformed, or scheduled and not yet due. In
//! an ordered document it stops at the first entry that waits for a retry, is claimed by another process, or must be
//! delivered by another deliverer, because later entries must not overtake such an entry. If dead entries block, the
//! function also stops at a dead entry. In an unordered document the function never stops.

use std::fmt;

use mongodb::bson::DateTime;

use crate::stored::entry::{Entry, Slot};

/// Whether the messages of one document keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeliveryOrder {
    /// Messages are delivered one after the other, in the order of the outbox. A failing message blocks later
    /// messages.
    #[default]
    Ordered,
    /// Like `Ordered`, but a dead message also blocks later messages, until an operator has replayed or removed the
    /// dead message.
    DeadBlocks,
    /// Messages are delivered independently. A failing message doesn't block other messages.
    Unordered,
}

/// An entry that was claimed at least this many times without an outcome is claimed alone, so that a crash that it
/// causes doesn't count against other entries.
pub(crate) const CLAIMED_ALONE_AT: i64 = 5;
/// An entry that was claimed this many times without an outcome is marked dead.
pub(crate) const CRASHED_AT: i64 = 8;

/// The parameters of the decision.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// The server's time.
    pub now: DateTime,
    /// Whether the messages of the document keep their order.
    pub ordering: DeliveryOrder,
    /// Maximum number of entries in one claim.
    pub limit: usize,
    /// Whether the calling deliverer can deliver an entry whose field `via` has this value.
    pub serves: &'a (dyn Fn(Option<&str>) -> bool + Sync),
}

impl fmt::Debug for Rules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("now", &self.now)
            .field("ordering", &self.ordering)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// Why the remaining entries are not deliverable now. The *head* is the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The head is under another claim until this time.
    Claimed(DateTime),
    /// The head failed and is retried at this time.
    Retrying(DateTime),
    /// The head is scheduled for this time.
    Scheduled(DateTime),
    /// The head must be delivered by another deliverer.
    NotMine,
    /// The head is dead, and this document's dead entries block the later ones.
    Dead,
}

/// The result of [`deliverable`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Deliverable<'a> {
    /// The entries to claim and deliver now, in this order.
    pub entries: Vec<&'a Entry>,
    /// An entry to mark dead before the delivery, because the processes that claimed it kept dying.
    pub crashed: Option<&'a Entry>,
    /// Whether there are more deliverable entries, for a later claim.
    pub more: bool,
    /// Why the first entry that is not deliverable is blocked. Scheduled entries don't block other entries, so the
    /// earliest scheduled entry is reported only if no other entry is blocked.
    pub held: Option<Hold>,
    /// Number of entries that the calling deliverer cannot deliver.
    pub not_mine: usize,
    /// Number of malformed elements.
    pub unreadable: usize,
}

impl Deliverable<'_> {
    /// Whether this document needs work now.
    pub fn is_work(&self) -> bool {
        !self.entries.is_empty() || self.crashed.is_some()
    }
}

/// Decides which entries of an outbox may be delivered now.
pub fn deliverable<'a>(slots: &'a [Slot], rules: Rules<'_>) -> Deliverable<'a> {
    let mut answer = Deliverable::default();
    let mut next = Next::MayFollow;
    for slot in slots {
        let entry = match slot {
            Slot::Unreadable(_) => {
                answer.unreadable += 1;
                continue;
            }
            Slot::Entry(entry) => entry.as_ref(),
        };

        if entry.dead.is_some() {
            if next == Next::MayFollow && rules.ordering == DeliveryOrder::DeadBlocks {
                note(&mut answer.held, Hold::Dead);
                next = Next::Waits;
            }
            continue;
        }

        // Entries for other deliverers are counted even behind a blocked head, because their number is reported.
        let is_mine = (rules.serves)(entry.via.as_deref());
        if !is_mine {
            answer.not_mine += 1;
        }
        if next == Next::Waits {
            continue;
        }

        let waits = match hold(entry, rules.now) {
            None if !is_mine => Some(Hold::NotMine),
            waits => waits,
        };
        match waits {
            None => next = take(&mut answer, entry, rules.limit),
            Some(hold) => {
                note(&mut answer.held, hold);
                next = match (rules.ordering, hold) {
                    (DeliveryOrder::Unordered, _) | (_, Hold::Scheduled(_)) => Next::MayFollow,
                    _ => Next::Waits,
                };
            }
        }
    }
    answer
}

/// Records why entries are blocked. The first reason is kept, except that [`Hold::Scheduled`] is replaced by any other
/// reason, or by [`Hold::Scheduled`] with an earlier time.
fn note(held: &mut Option<Hold>, hold: Hold) {
    let gives_way = match (*held, hold) {
        (Some(Hold::Scheduled(known)), Hold::Scheduled(at)) => at < known,
        (None | Some(Hold::Scheduled(_)), _) => true,
        (Some(_), _) => false,
    };
    if gives_way {
        *held = Some(hold);
    }
}

/// Whether the entries after an entry may be delivered too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    MayFollow,
    /// Later entries wait, because they must not overtake this entry or because the claim is full.
    Waits,
}

/// Adds an entry to the result, or records why it is blocked.
fn take<'a>(answer: &mut Deliverable<'a>, entry: &'a Entry, limit: usize) -> Next {
    let crashes = entry.claims - entry.attempts;
    if crashes >= CRASHED_AT {
        if answer.entries.is_empty() {
            answer.crashed = Some(entry);
        }
        answer.more = true;
        return Next::Waits;
    }

    let alone = crashes >= CLAIMED_ALONE_AT;
    if answer.entries.len() >= limit || alone && !answer.entries.is_empty() {
        answer.more = true;
        return Next::Waits;
    }

    answer.entries.push(entry);
    answer.more = alone;
    if alone { Next::Waits } else { Next::MayFollow }
}

/// Returns the reason why no deliverer can deliver this entry at this time. `None` if there is no such reason.
pub fn hold(entry: &Entry, now: DateTime) -> Option<Hold> {
    let at = entry.available_at.filter(|at| *at > now)?;
    match (&entry.claimed_by, entry.attempts) {
        (Some(_), _) => Some(Hold::Claimed(at)),
        (None, 1..) => Some(Hold::Retrying(at)),
        // When the entry was sent, it was already due by a clock that is ahead of the clock of `now`. The entry must
        // not be skipped as scheduled, because later entries would then overtake this entry.
        (None, _) if entry.created_at.is_some_and(|created_at| at <= created_at) => None,
        (None, _) => Some(Hold::Scheduled(at)),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, Uuid, doc};

    use super::*;
    use crate::stored::entry::read_outbox;

    const NOW: i64 = 1_000_000;

    fn at(millis: i64) -> DateTime {
        DateTime::from_millis(millis)
    }

    fn entry(name: &str, extra: mongodb::bson::Document) -> Bson {
        let mut document = doc! { "id": Uuid::new(), "type": name, "payload": {} };
        document.extend(extra);
        document.into()
    }

    fn names<'a>(found: &Deliverable<'a>) -> Vec<&'a str> {
        found.entries.iter().map(|entry| entry.message_type.as_str()).collect()
    }

    fn ask(slots: &[Slot], ordering: DeliveryOrder) -> Deliverable<'_> {
        let serves = |via: Option<&str>| via.is_none();
        deliverable(slots, Rules { now: at(NOW), ordering, limit: 3, serves: &serves })
    }

    fn slots(entries: Vec<Bson>) -> Vec<Slot> {
        read_outbox(Some(&Bson::Array(entries))).unwrap()
    }

    #[test]
    fn dead_unreadable_and_future_entries_are_skipped() {
        let slots = slots(vec![
            entry("dead", doc! { "dead_at": at(1) }),
            Bson::Null,
            entry("scheduled", doc! { "available_at": at(NOW + 1) }),
            entry("due", doc! { "available_at": at(NOW) }),
            entry("foreign", doc! {}),
        ]);
        let found = ask(&slots, DeliveryOrder::Ordered);
        assert_eq!(names(&found), ["due", "foreign"]);
        assert_eq!(found.held, Some(Hold::Scheduled(at(NOW + 1))));
        assert_eq!(found.unreadable, 1);
    }

    #[test]
    fn a_retrying_or_claimed_head_blocks_only_ordered_documents() {
        for (head, hold) in [
            (doc! { "available_at": at(NOW + 5), "attempts": 1 }, Hold::Retrying(at(NOW + 5))),
            (doc! { "available_at": at(NOW + 5), "claimed_by": "x" }, Hold::Claimed(at(NOW + 5))),
            (doc! { "via": "handlers" }, Hold::NotMine),
        ] {
            let slots = slots(vec![entry("head", head), entry("next", doc! {})]);
            let ordered = ask(&slots, DeliveryOrder::Ordered);
            assert_eq!((names(&ordered), ordered.held), (vec![], Some(hold)));
            assert_eq!(names(&ask(&slots, DeliveryOrder::Unordered)), ["next"]);
        }
    }

    #[test]
    fn dead_entries_block_later_ones_only_if_configured() {
        let slots = slots(vec![
            entry("first", doc! {}),
            entry("dead", doc! { "dead_at": at(1) }),
            entry("next", doc! {}),
            entry("other", doc! { "via": "handlers" }),
        ]);
        assert_eq!(names(&ask(&slots, DeliveryOrder::Ordered)), ["first", "next"]);
        assert_eq!(names(&ask(&slots, DeliveryOrder::Unordered)), ["first", "next"]);
        let found = ask(&slots, DeliveryOrder::DeadBlocks);
        assert_eq!((names(&found), found.held), (vec!["first"], Some(Hold::Dead)));
        assert_eq!(found.not_mine, 1, "what is behind it is still counted");
        let found = ask(&slots[1..], DeliveryOrder::DeadBlocks);
        assert!(!found.is_work(), "no reason for a command");
        let retrying = entry("head", doc! { "available_at": at(NOW + 5), "attempts": 1 });
        let behind = [self::slots(vec![retrying]), slots].concat();
        assert_eq!(ask(&behind, DeliveryOrder::DeadBlocks).held, Some(Hold::Retrying(at(NOW + 5))));
    }

    #[test]
    fn a_scheduled_entry_is_the_last_named_blocker() {
        let scheduled = |millis| entry("scheduled", doc! { "available_at": at(NOW + millis) });
        let claimed = entry("claimed", doc! { "available_at": at(NOW + 5), "claimed_by": "x" });
        let several = slots(vec![scheduled(9), scheduled(3), scheduled(7)]);
        assert_eq!(ask(&several, DeliveryOrder::Ordered).held, Some(Hold::Scheduled(at(NOW + 3))));
        let both = slots(vec![scheduled(9), claimed, scheduled(3)]);
        assert_eq!(ask(&both, DeliveryOrder::Ordered).held, Some(Hold::Claimed(at(NOW + 5))));
    }

    #[test]
    fn an_entry_sent_due_is_due_by_every_clock() {
        let ahead = doc! { "created_at": at(NOW + 50), "available_at": at(NOW + 50) };
        let slots = slots(vec![entry("first", ahead), entry("second", doc! {})]);
        assert_eq!(names(&ask(&slots, DeliveryOrder::Ordered)), ["first", "second"]);
    }

    #[test]
    fn an_expired_claim_is_deliverable() {
        let slots = slots(vec![entry("a", doc! { "available_at": at(NOW), "claimed_by": "gone" })]);
        assert_eq!(names(&ask(&slots, DeliveryOrder::Ordered)), ["a"]);
    }

    #[test]
    fn a_claim_holds_no_more_than_its_limit() {
        let slots = slots((0..10).map(|_| entry("a", doc! {})).collect());
        assert_eq!(ask(&slots, DeliveryOrder::Ordered).entries.len(), 3);
    }

    #[test]
    fn a_crashing_entry_is_claimed_alone_then_dies() {
        let crashed = |claims: i32, attempts: i32| doc! { "claims": claims, "attempts": attempts };
        let alone = slots(vec![entry("a", crashed(5, 0)), entry("b", doc! {})]);
        assert_eq!(names(&ask(&alone, DeliveryOrder::Ordered)), ["a"]);
        let behind = slots(vec![entry("a", doc! {}), entry("b", crashed(5, 0)), entry("c", doc! {})]);
        assert_eq!(names(&ask(&behind, DeliveryOrder::Ordered)), ["a"]);
        let dying = slots(vec![entry("a", crashed(8, 0)), entry("b", doc! {})]);
        let found = ask(&dying, DeliveryOrder::Ordered);
        assert_eq!(found.crashed.map(|entry| entry.message_type.as_str()), Some("a"));
        assert!(found.entries.is_empty());
        let failing = slots(vec![entry("a", crashed(9, 9)), entry("b", doc! {})]);
        assert_eq!(names(&ask(&failing, DeliveryOrder::Ordered)), ["a", "b"]);
    }
}

//! Explains why a message is not delivered now.
//!
//! The reasons are those of the library's `deliverable()`, which every deliverer asks: of the message alone, and of the
//! message behind each earlier one.

use std::collections::BTreeMap;

use document_outbox::{
    DeliveryOrder,
    internal::{Entry, Hold, Rules, Slot, deliverable, hold},
};
use mongodb::bson::{Bson, DateTime, Uuid};
use serde::Serialize;

use crate::{Operator, error::OperateError, find::FoundMessage, lease, list::Row, text};

/// A message that is due for longer than this should have been delivered by a sweep.
const LATE_SECONDS: u64 = 60;

/// Why a message is not delivered at this moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing blocks it.
    Deliverable,
    /// It is dead.
    Dead,
    /// A process has claimed it.
    Claimed,
    /// Its next attempt is later.
    Retrying,
    /// It is scheduled for later.
    Scheduled,
    /// The next worker that claims it marks it dead, because the workers before it crashed.
    Crashing,
    /// It is malformed.
    Unreadable,
    /// An earlier message of the document blocks it.
    Behind {
        /// The earlier message's place, from 1.
        place: usize,
        /// Its id.
        id: Option<Uuid>,
        /// Its type.
        message_type: Option<String>,
        /// Why that one is not delivered.
        because: Box<Reason>,
    },
}

/// The explanation of one message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The message.
    #[serde(flatten)]
    pub row: Row,
    /// The reason.
    pub reason: Reason,
    /// The reason in words, and what happens next. Each text is a sentence.
    pub sentences: Vec<String>,
    /// The heading in docs/operations.md that says what to do.
    pub runbook: Option<&'static str>,
}

impl Operator {
    /// Explains a message that was found.
    pub async fn explain(&self, found: &FoundMessage) -> Result<Explanation, OperateError> {
        let now = self.now().await?;
        let ordering = self.ordering(&found.document.namespace);
        let lease = self.oversized(&found.document).await?;
        let mut outbox = found.outbox.clone();
        if let Some(lease) = &lease {
            lease.complete(&mut outbox);
        }

        let reasons = reasons(&outbox, ordering, now);
        let reason = reasons.into_iter().nth(found.index).unwrap_or(Reason::Unreadable);
        let slot = &outbox[found.index];
        let mut sentences = sentences(&reason, slot, &outbox, now);
        let mut runbook = runbook(&reason, slot.entry(), now);
        if let Some(lease) = lease {
            sentences.extend(lease.sentences(slot.entry().map(|entry| entry.id), now));
            runbook = Some(lease::RUNBOOK);
        }
        Ok(Explanation {
            row: Row::of(&found.document, found.index + 1, slot, now),
            sentences,
            runbook,
            reason,
        })
    }
}

/// The reason of each element of an outbox. Each message is judged as a process judges it that serves its `via`: for that
/// process, an earlier message with another `via` is not deliverable, and blocks it.
pub(crate) fn reasons(outbox: &[Slot], ordering: DeliveryOrder, now: DateTime) -> Vec<Reason> {
    // The first blocking element for each `via`.
    let mut blockers: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    for slot in outbox {
        let Some(entry) = slot.entry() else { continue };
        let via = entry.via.as_deref();
        if blockers.contains_key(&via) {
            continue;
        }
        let first = outbox.iter().position(|slot| blocks(slot, ordering, now, via));
        blockers.insert(via, first.unwrap_or(outbox.len()));
    }

    let mut reasons = Vec::with_capacity(outbox.len());
    for (index, slot) in outbox.iter().enumerate() {
        let alive = slot.entry().filter(|entry| entry.dead.is_none());
        let blocker = alive.and_then(|entry| blockers.get(&entry.via.as_deref())).filter(|at| **at < index);
        reasons.push(match blocker {
            Some(at) => Reason::Behind {
                place: at + 1,
                id: outbox[*at].entry().map(|entry| entry.id),
                message_type: outbox[*at].entry().map(|entry| entry.message_type.clone()),
                because: Box::new(own(&outbox[*at], now)),
            },
            None => own(slot, now),
        });
    }
    reasons
}

/// The reason of an element, whatever is before it.
fn own(slot: &Slot, now: DateTime) -> Reason {
    let Some(entry) = slot.entry() else { return Reason::Unreadable };
    if entry.dead.is_some() {
        return Reason::Dead;
    }
    match hold(entry, now) {
        Some(Hold::Claimed(_)) => return Reason::Claimed,
        Some(Hold::Retrying(_)) => return Reason::Retrying,
        Some(Hold::Scheduled(_)) => return Reason::Scheduled,
        None | Some(Hold::NotMine | Hold::Dead) => {}
    }
    let alone = [light(slot)];
    let serves_all = |_: Option<&str>| true;
    let found = deliverable(&alone, rules(DeliveryOrder::Ordered, now, &serves_all));
    if found.crashed.is_some() { Reason::Crashing } else { Reason::Deliverable }
}

/// Whether a due message with this `via` right behind this element is not deliverable.
fn blocks(slot: &Slot, ordering: DeliveryOrder, now: DateTime, via: Option<&str>) -> bool {
    let probe = Entry { via: via.map(str::to_owned), ..probe() };
    let id = probe.id;
    let both = [light(slot), Slot::Entry(Box::new(probe))];
    let serves = |of: Option<&str>| of == via;
    !deliverable(&both, rules(ordering, now, &serves)).entries.iter().any(|entry| entry.id == id)
}

fn rules(
    ordering: DeliveryOrder,
    now: DateTime,
    serves: &(dyn Fn(Option<&str>) -> bool + Sync),
) -> Rules<'_> {
    Rules { now, ordering, limit: usize::MAX, serves }
}

/// The element without its payload, which the decision doesn't need.
fn light(slot: &Slot) -> Slot {
    match slot {
        Slot::Entry(entry) => Slot::Entry(Box::new(without_payload(entry))),
        Slot::Unreadable(flaw) => Slot::Unreadable(flaw.clone()),
    }
}

fn without_payload(entry: &Entry) -> Entry {
    Entry {
        id: entry.id,
        via: entry.via.clone(),
        created_at: entry.created_at,
        available_at: entry.available_at,
        claimed_by: entry.claimed_by.clone(),
        attempts: entry.attempts,
        claims: entry.claims,
        dead: entry.dead.clone(),
        ..probe()
    }
}

/// A message that is due.
fn probe() -> Entry {
    Entry {
        id: Uuid::new(),
        message_type: "probe".to_owned(),
        payload: Bson::Null,
        headers: BTreeMap::new(),
        via: None,
        key: None,
        created_at: None,
        available_at: None,
        claimed_by: None,
        attempts: 0,
        claims: 0,
        last_error: None,
        delivered_to: Vec::new(),
        dead: None,
    }
}

fn sentences(reason: &Reason, slot: &Slot, outbox: &[Slot], now: DateTime) -> Vec<String> {
    let entry = match slot {
        Slot::Entry(entry) => entry,
        Slot::Unreadable(flaw) => {
            return vec![
                format!("The element is malformed: {}.", flaw.reason),
                "It is neither delivered nor deleted, and blocks no other message. Correct the program that wrote it, \
                 then repair the element."
                    .to_owned(),
            ];
        }
    };

    let mut sentences = Vec::new();
    if let Reason::Behind { place, id, because, .. } = reason {
        let id = id.map_or_else(|| "without an id".to_owned(), |id| id.to_string());
        sentences.push(format!(
            "Message {place} of the same document ({id}) blocks it, because messages of a document keep their order."
        ));
        if let Some(blocker) = outbox.get(place - 1).and_then(Slot::entry) {
            sentences.extend(of_blocker(because, blocker, entry.via.as_deref(), now));
        }
        return sentences;
    }
    sentences.extend(of_entry(reason, entry, now));
    sentences
}

/// Why a blocker is not delivered, for a message with this `via`.
fn of_blocker(because: &Reason, blocker: &Entry, via: Option<&str>, now: DateTime) -> Vec<String> {
    if *because != Reason::Deliverable || blocker.via.as_deref() == via {
        return of_entry(because, blocker, now);
    }
    let server = |via: Option<&str>| match via {
        Some(via) => format!("a process that serves `{via}`"),
        None => "a dispatcher".to_owned(),
    };
    vec![format!(
        "Message {} is due, and only {} delivers it; {} waits until then. Check that {} runs.",
        blocker.id,
        server(blocker.via.as_deref()),
        server(via),
        server(blocker.via.as_deref())
    )]
}

/// The number of claims that ended without an outcome. A failed delivery counts as a claim and as an attempt.
fn lost_claims(entry: &Entry) -> i64 {
    (entry.claims - entry.attempts).max(0)
}

fn of_entry(reason: &Reason, entry: &Entry, now: DateTime) -> Vec<String> {
    let at = entry
        .available_at
        .map_or_else(String::new, |at| format!("{} ({})", text::relative(now, at), text::date(at)));
    match reason {
        Reason::Deliverable => deliverable_now(entry, now),
        Reason::Dead => dead(entry, now),
        Reason::Claimed => vec![
            format!(
                "{} has claimed it; the claim ends {at}.",
                entry.claimed_by.as_deref().unwrap_or("A process")
            ),
            "If that process has died, a worker takes the message over when the claim has ended.".to_owned(),
        ],
        Reason::Retrying => {
            let mut sentences = vec![format!(
                "{} failed, and the next attempt is {at}.",
                counted(entry.attempts, "attempt has", "attempts have")
            )];
            sentences.extend(last_error(entry));
            sentences
        }
        Reason::Scheduled => vec![
            format!("It is scheduled: it is due {at}."),
            "Until then it blocks no later message of its document.".to_owned(),
        ],
        Reason::Crashing => vec![
            format!(
                "Workers have claimed it {} without an outcome, so it probably ends the process that delivers it.",
                counted(lost_claims(entry), "time", "times")
            ),
            "The next worker that claims it marks it dead.".to_owned(),
        ],
        Reason::Unreadable | Reason::Behind { .. } => Vec::new(),
    }
}

fn deliverable_now(entry: &Entry, now: DateTime) -> Vec<String> {
    let mut sentences = vec!["Nothing blocks it: it is due, and it may be delivered now.".to_owned()];
    match &entry.via {
        None => sentences.push(
            "The next sweep of the rescuer sends a command for its document, and any dispatcher delivers it."
                .to_owned(),
        ),
        Some(via) => sentences.push(format!(
            "Its `via` is `{via}`, so only a process that serves `{via}` delivers it; a dispatcher without handlers \
             skips it."
        )),
    }

    let due = entry.available_at.or(entry.created_at);
    if let Some(due) = due.filter(|due| text::since(now, *due).as_secs() > LATE_SECONDS) {
        sentences.push(format!(
            "It has been due for {}. Check that a rescuer owns the stream and that a dispatcher consumes commands.",
            text::duration(text::since(now, due))
        ));
    }
    if lost_claims(entry) > 0 {
        sentences.push(format!(
            "Workers have claimed it {} without an outcome; check their logs.",
            counted(lost_claims(entry), "time", "times")
        ));
    }
    sentences.extend(last_error(entry));
    sentences
}

fn dead(entry: &Entry, now: DateTime) -> Vec<String> {
    let Some(dead) = &entry.dead else { return Vec::new() };
    let died = format!("{} ({})", text::relative(now, dead.at), text::date(dead.at));
    let meaning = match dead.reason.as_str() {
        "attempts_exhausted" => {
            format!("every allowed attempt failed, the last one was number {}", entry.attempts)
        }
        "permanent" => "a delivery reported that it can never succeed".to_owned(),
        "crashed" => "eight claims ended without an outcome".to_owned(),
        "operator" => "an operator marked it dead".to_owned(),
        other => format!("the reason is `{other}`"),
    };

    let mut sentences = vec![format!("It died {died}: {meaning}.")];
    sentences.extend(last_error(entry));
    sentences.push("A dead message is never delivered, unless an operator replays it.".to_owned());
    sentences
}

fn last_error(entry: &Entry) -> Option<String> {
    entry.last_error.as_ref().map(|error| format!("The last error was: {error}"))
}

fn counted(number: i64, one: &str, several: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {several}") }
}

fn runbook(reason: &Reason, entry: Option<&Entry>, now: DateTime) -> Option<&'static str> {
    match reason {
        Reason::Dead | Reason::Crashing => Some("Dead messages appear"),
        Reason::Retrying => Some("Deliveries fail"),
        Reason::Unreadable => Some("Unreadable entries appear"),
        Reason::Behind { because, .. } => runbook(because, entry, now),
        Reason::Deliverable => {
            let due = entry.and_then(|entry| entry.available_at.or(entry.created_at))?;
            (text::since(now, due).as_secs() > LATE_SECONDS).then_some("Backlog")
        }
        Reason::Claimed | Reason::Scheduled => None,
    }
}

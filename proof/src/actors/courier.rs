//! A courier is one pass over a document: read, claim, publish, settle and clear. The inline dispatcher and the worker
//! both use couriers.
//!
//! The courier imitates `src/dispatch/pass.rs` and `under_claim.rs`. The library's own functions decide which messages are
//! delivered, how each message is settled, whether there is time for another message, and the form of a released entry.

use document_outbox::{
    DeliveryOrder, RetryPolicy,
    deliver::Outcome,
    dispatch::Processed,
    internal::{
        Confirm, Entry, Hold, Returned, Rules, Settlement, deliverable, due_again, is_enough, judge_window,
        outcome, settlement, until,
    },
};

use crate::{
    actor::Name,
    broken::Broken,
    world::{
        Change, Claimed, Durability, EntryId, Fate, Stored, Tick, Token, World, at, slots, tick_of, ticks,
    },
};

/// The maximum number of messages in one claim.
const LIMIT: usize = 2;
/// The number of failed attempts after which a message is dead.
const MAX_ATTEMPTS: u32 = 2;

/// One pass over a document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Courier {
    pub document: usize,
    lease: Tick,
    counts_claims: bool,
    phase: CourierPhase,
}

/// The entries that a claim holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Held {
    pub token: Token,
    pub until: Tick,
    counted: bool,
    /// The entries as they were before the claim.
    entries: Vec<Stored>,
    /// The whole outbox as it was read. Only a clear that replaces the whole outbox, `Broken::ClearByReplacing`, uses this copy.
    read: Vec<Stored>,
    /// Whether the document has other messages that this claim does not include, some of which may be due later.
    more: bool,
    next: usize,
    pub delivered: Vec<EntryId>,
    stopped: Option<End>,
}

/// Why a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    Done,
    Claimed(Tick),
    Retrying(Tick),
    Scheduled(Tick),
    Blocked,
    Unavailable,
    /// MongoDB gave no clear answer.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum CourierPhase {
    Read,
    Claim {
        entries: Vec<Stored>,
        read: Vec<Stored>,
        more: bool,
        now: Tick,
    },
    /// The claim was written, but the majority doesn't have it yet.
    Wait(Held),
    Publish(Held),
    /// A message was published, and the broker has not answered yet.
    Answer(Held),
    Finish(Held),
    /// All claimed messages were delivered, and may be cleared later.
    Delivered(Held),
    Ended(End),
}

impl End {
    /// Converts this end to the value that the library uses for it.
    pub fn processed(self) -> Processed {
        match self {
            Self::Done | Self::Failed => Processed::Done,
            Self::Claimed(tick) => Processed::Held(Hold::Claimed(at(tick))),
            Self::Retrying(tick) => Processed::Held(Hold::Retrying(at(tick))),
            Self::Scheduled(tick) => Processed::Held(Hold::Scheduled(at(tick))),
            Self::Blocked => Processed::Held(Hold::Dead),
            Self::Unavailable => Processed::Unavailable,
        }
    }

    fn of(hold: Option<Hold>) -> Self {
        match hold {
            None => Self::Done,
            Some(Hold::Claimed(date)) => Self::Claimed(tick_of(date)),
            Some(Hold::Retrying(date)) => Self::Retrying(tick_of(date)),
            Some(Hold::Scheduled(date)) => Self::Scheduled(tick_of(date)),
            Some(Hold::NotMine | Hold::Dead) => Self::Blocked,
        }
    }
}

impl Courier {
    /// Creates a pass that begins by reading the document.
    pub fn new(document: usize, lease: Tick, counts_claims: bool) -> Self {
        Self { document, lease, counts_claims, phase: CourierPhase::Read }
    }

    /// Creates a pass for a message whose claim was written by the save itself.
    pub fn born_claimed(document: usize, lease: Tick, token: Token, now: Tick, stored: Stored) -> Self {
        let held = Held {
            token,
            until: now + lease,
            counted: false,
            read: vec![stored.clone()],
            entries: vec![stored],
            more: false,
            next: 0,
            delivered: Vec::new(),
            stopped: None,
        };
        Self { document, lease, counts_claims: false, phase: CourierPhase::Publish(held) }
    }

    pub fn end(&self) -> Option<End> {
        match &self.phase {
            CourierPhase::Ended(end) => Some(*end),
            _ => None,
        }
    }

    /// Returns the entries that may be cleared later: the entries of a claim whose messages were all delivered, if enough time is
    /// left until the claim expires.
    pub fn may_defer(&self, now: Tick) -> Option<&Held> {
        match &self.phase {
            CourierPhase::Delivered(held) if has_time(held, self.lease, now) => Some(held),
            _ => None,
        }
    }

    /// Whether the pass can take its next step without waiting.
    pub fn can_go(&self, me: Name, world: &World) -> bool {
        match &self.phase {
            CourierPhase::Wait(_) => {
                world.is_broken(Broken::DispatchBeforeMajority)
                    || world.mongo.last_write(me) != Durability::Pending
            }
            CourierPhase::Ended(_) => false,
            _ => true,
        }
    }

    /// Whether the next step writes a claim, which needs a new number.
    pub fn claims(&self) -> bool {
        matches!(self.phase, CourierPhase::Claim { .. })
    }

    /// Loses the server's answer to a claim. Returns false if the pass waits for no such answer.
    pub fn loses_answer(&mut self, me: Name, world: &mut World) -> bool {
        if !matches!(self.phase, CourierPhase::Wait(_)) {
            return false;
        }
        world.mongo.forget(me);
        self.phase = CourierPhase::Ended(End::Failed);
        true
    }

    /// Takes one step.
    pub fn go(&mut self, me: Name, number: u8, world: &mut World) {
        let phase = std::mem::replace(&mut self.phase, CourierPhase::Read);
        self.phase = match phase {
            CourierPhase::Read => self.read(me, world),
            CourierPhase::Claim { entries, read, more, now } => {
                let held = Held {
                    token: (me, number),
                    until: now + self.lease,
                    counted: self.counts_claims,
                    entries,
                    read,
                    more,
                    next: 0,
                    delivered: Vec::new(),
                    stopped: None,
                };
                self.claim(held, me, world)
            }
            CourierPhase::Wait(held) => match world.mongo.last_write(me) {
                Durability::RolledBack => {
                    world.mongo.forget(me);
                    CourierPhase::Read
                }
                Durability::Durable | Durability::Pending => CourierPhase::Publish(held),
            },
            CourierPhase::Publish(held) => self.publish(held, me, world),
            CourierPhase::Answer(held) => self.answer(held, me, world),
            CourierPhase::Delivered(held) | CourierPhase::Finish(held) => self.finish(&held, world),
            ended @ CourierPhase::Ended(_) => ended,
        };
    }

    fn read(&self, me: Name, world: &World) -> CourierPhase {
        if !world.broker.reaches(me) {
            return CourierPhase::Ended(End::Unavailable);
        }
        let read = world.mongo.primary.documents[self.document].outbox.clone();
        let slots = slots(&read);
        let ordering = world.ordering(self.document);
        let plan =
            deliverable(&slots, Rules { now: at(world.now), ordering, limit: LIMIT, serves: &|_| true });
        if plan.entries.is_empty() {
            return CourierPhase::Ended(End::of(plan.held));
        }

        let ids: Vec<_> = plan.entries.iter().map(|entry| entry.id).collect();
        let entries = read.iter().filter(|stored| ids.contains(&stored.entry().id)).cloned().collect();
        CourierPhase::Claim { entries, more: plan.more || plan.held.is_some(), read, now: world.now }
    }

    /// Claims the entries if none of them has changed since the pass read them. Otherwise the pass reads the document again.
    fn claim(&self, held: Held, me: Name, world: &mut World) -> CourierPhase {
        let document = self.document;
        let is_claimed = world.mongo.write(me, |data| {
            let outbox = &mut data.documents[document].outbox;
            if !held.entries.iter().all(|entry| outbox.contains(entry)) {
                return false;
            }
            for stored in outbox.iter_mut().filter(|stored| held.entries.contains(stored)) {
                stored.claim = Some(held.token);
                stored.available = Some(held.until);
                stored.claims += u8::from(held.counted);
            }
            true
        });
        if is_claimed { CourierPhase::Wait(held) } else { CourierPhase::Read }
    }

    fn publish(&self, mut held: Held, me: Name, world: &mut World) -> CourierPhase {
        let Some(entry) = held.entries.get(held.next) else { return CourierPhase::Finish(held) };
        if !has_time(&held, self.lease, world.now) {
            held.more = true;
            return CourierPhase::Finish(held);
        }
        if !world.broker.reaches(me) {
            held.stopped = Some(End::Unavailable);
            return CourierPhase::Finish(held);
        }

        let id = entry.id;
        if is_routed(entry, world) {
            world.arrives(self.document, id, Claimed { token: held.token, until: held.until });
        }
        if world.is_broken(Broken::ClearBeforeConfirm) {
            self.clear(&held, &[id], world);
        }
        CourierPhase::Answer(held)
    }

    /// Handles the broker's answer, or the loss of the connection.
    fn answer(&self, mut held: Held, me: Name, world: &mut World) -> CourierPhase {
        let stored = held.entries[held.next].clone();
        held.next += 1;
        let entry = stored.entry();
        let mut policy = RetryPolicy::default();
        policy.max_attempts = MAX_ATTEMPTS;

        match settlement(broker_says(&stored, me, world), &entry, &policy) {
            Settlement::Clear => held.delivered.push(stored.id),
            Settlement::Release { .. } => {
                world.ledger.doubt(stored.id);
                held.next -= 1;
                held.stopped = Some(End::Unavailable);
            }
            Settlement::Fail { .. } => {
                world.ledger.doubt(stored.id);
                held.stopped = Some(End::Retrying(world.now + 1));
                let retry_at = world.now + 1;
                self.settle(&held, stored.id, world, |stored| {
                    stored.available = Some(retry_at);
                    stored.attempts += 1;
                });
            }
            Settlement::Die { reason, .. } => {
                self.settle(&held, stored.id, world, |stored| {
                    stored.available = None;
                    stored.dead = Some(reason.as_str());
                });
                self.show_death(world);
                if world.ordering(self.document) == DeliveryOrder::DeadBlocks {
                    held.stopped = Some(End::Blocked);
                }
            }
        }

        let blocks = world.ordering(self.document) != DeliveryOrder::Unordered;
        if held.stopped.is_some() && blocks || held.next >= held.entries.len() {
            let is_all = held.delivered.len() == held.entries.len();
            return if is_all { CourierPhase::Delivered(held) } else { CourierPhase::Finish(held) };
        }
        CourierPhase::Publish(held)
    }

    /// Adds a change for a message's death to the change stream, so that the rescuer checks the document: entries without a date
    /// may have waited behind the message.
    fn show_death(&self, world: &mut World) {
        if world.is_broken(Broken::DeathHidden) {
            return;
        }
        let (document, now) = (self.document, world.now);
        world.mongo.also(|data| data.changes.push(Change::other(document, now)));
    }

    /// Changes an entry and releases it, if the claim still holds it.
    fn settle(&self, held: &Held, id: EntryId, world: &mut World, change: impl Fn(&mut Stored)) {
        let (document, token) = (self.document, held.token);
        world.mongo.also(|data| {
            for stored in data.claimed(document, &[id], token) {
                change(stored);
                stored.claim = None;
            }
        });
    }

    /// Clears the delivered entries, and releases the other entries of the claim.
    fn finish(&self, held: &Held, world: &mut World) -> CourierPhase {
        if !held.delivered.is_empty() && !world.is_broken(Broken::ClearBeforeConfirm) {
            self.clear(held, &held.delivered, world);
        }
        self.give_back(held, world);

        match held.stopped {
            Some(end) => CourierPhase::Ended(end),
            None if held.more => CourierPhase::Read,
            None => CourierPhase::Ended(End::Done),
        }
    }

    fn clear(&self, held: &Held, ids: &[EntryId], world: &mut World) {
        clear(self.document, held, ids, world);
    }

    fn give_back(&self, held: &Held, world: &mut World) {
        let rest: Vec<Entry> = held.entries[held.next..].iter().map(Stored::entry).collect();
        if rest.is_empty() {
            return;
        }

        let dates = due_again(&rest.iter().collect::<Vec<_>>(), at(world.now));
        let (document, token, counted) = (self.document, held.token, held.counted);
        let ids: Vec<_> = held.entries[held.next..].iter().map(|stored| stored.id).collect();
        let now = world.now;
        world.mongo.also(|data| {
            let mut is_shown = false;
            for stored in data.claimed(document, &ids, token) {
                let id = stored.entry().id;
                let date = dates.iter().find(|(_, ids)| ids.contains(&id)).and_then(|(date, _)| *date);
                stored.available = date.map(tick_of);
                is_shown |= date.is_none();
                stored.claim = None;
                stored.claims -= u8::from(counted);
            }
            if is_shown {
                data.changes.push(Change::other(document, now));
            }
        });
    }
}

/// Removes entries by id and claim, without waiting for the majority.
pub fn clear(document: usize, held: &Held, ids: &[EntryId], world: &mut World) {
    let replaces = world.is_broken(Broken::ClearByReplacing);
    let (token, now) = (held.token, world.now);
    world.mongo.also(|data| {
        let outbox = &mut data.documents[document].outbox;
        if replaces {
            *outbox = held.read.iter().filter(|stored| !ids.contains(&stored.id)).cloned().collect();
            return;
        }
        let before = outbox.len();
        outbox.retain(|stored| !(ids.contains(&stored.id) && stored.claim == Some(token)));
        if outbox.len() < before && !outbox.is_empty() {
            data.changes.push(Change::other(document, now));
        }
    });
}

fn has_time(held: &Held, lease: Tick, now: Tick) -> bool {
    is_enough(until(at(now), at(held.until)), ticks(lease), ticks(0))
}

/// Whether the message reaches a queue.
fn is_routed(stored: &Stored, world: &World) -> bool {
    match world.fate(stored.id) {
        Fate::Good => true,
        Fate::RefusedOnce => stored.attempts > 0,
        Fate::Unroutable | Fate::Impossible => false,
    }
}

/// Returns the outcome that the library derives from the broker's answer to a message.
fn broker_says(stored: &Stored, me: Name, world: &World) -> Outcome {
    let id = format!("{:?}", stored.id);
    let returned = Returned { message_id: Some(id.clone()), code: 312, text: "NO_ROUTE".into() };
    let (answer, mut returns) = match world.fate(stored.id) {
        _ if !world.broker.reaches(me) => (Confirm::Missing, Vec::new()),
        Fate::Impossible => return Outcome::Permanent("never".into()),
        Fate::Unroutable => (Confirm::Acked, vec![returned]),
        _ if is_routed(stored, world) => (Confirm::Acked, Vec::new()),
        Fate::Good | Fate::RefusedOnce => (Confirm::Nacked, Vec::new()),
    };
    if world.is_broken(Broken::AnyAckAccepted) {
        returns.clear();
    }

    let published = judge_window(&[&id], &[answer], &returns, "the connection was lost").pop();
    match published {
        Some(published) => outcome(published, "m", "messages"),
        None => Outcome::Unavailable("no answer".into()),
    }
}

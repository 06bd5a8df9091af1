//! An application. The application loads a document, changes it, saves it with a message, and delivers the message right after
//! the save.
//!
//! The application imitates `src/store/write.rs` (the conditions of a save), `src/mongo/retryable_write.rs` (a write that is
//! repeated until it has a clear answer) and `src/dispatch/deliveries.rs`. The library's own functions decide what an error means
//! for a write.

use document_outbox::internal::{AfterFailure, GivenUp, after_failure, error_codes::Verdict, given_up};

use super::courier::{Courier, Held, clear};
use crate::{
    actor::{Actor, Blow, Name},
    broken::Broken,
    faults::{answer_lost::ANSWER_LOST, crash::CRASH, gives_up::GIVES_UP, refused::REFUSED},
    world::{
        Change, Data, Document, Durability, EntryId, Etag, INLINE_LEASE, Intent, Stored, Tick, Told, World,
    },
};

/// An application that makes the changes in `wishes` one after another.
#[derive(Debug, Clone, Hash)]
pub struct Saver {
    wishes: Vec<(usize, Intent)>,
    done: usize,
    /// How many times the current change was refused.
    again: u8,
    /// The number of the last write, used in claims and etags.
    number: u8,
    /// Delivered messages that the next save may remove from their document.
    deferred: Option<(usize, Held)>,
    phase: SaverPhase,
}

#[derive(Debug, Clone, Hash)]
enum SaverPhase {
    Idle,
    Write(Save),
    /// The primary has executed the save, but possibly the majority doesn't have it yet.
    Wait(Save),
    Deliver(Courier),
}

/// A save that was sent.
#[derive(Debug, Clone, Copy, Hash)]
struct Save {
    document: usize,
    id: EntryId,
    loaded: Option<Etag>,
    etag: Etag,
    /// The number of the retryable write.
    number: u8,
    prepared: Tick,
    condition: Condition,
    in_doubt: bool,
}

/// The requirement that the stored outbox must meet before the server executes a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Condition {
    HoldsOnlyDeferred,
    EmptyOutbox,
    Any,
}

/// The server's answer to a save.
enum Answer {
    Executed,
    Missed,
}

/// The steps of an application.
#[derive(Debug)]
pub enum SaverStep {
    Load,
    Save,
    Learn,
    Deliver,
    ClearDeferred,
}

impl Saver {
    /// Creates an application that makes these changes. Each change has the number of its document.
    pub fn new(wishes: impl IntoIterator<Item = (usize, Intent)>) -> Self {
        Self {
            wishes: wishes.into_iter().collect(),
            done: 0,
            again: 0,
            number: 0,
            deferred: None,
            phase: SaverPhase::Idle,
        }
    }

    fn next_number(&mut self) -> u8 {
        self.number += 1;
        self.number
    }

    fn load(&mut self, me: Name, world: &World) {
        let Some((document, intent)) = self.wishes.get(self.done).copied() else { return };
        let is_deferred = self.deferred.as_ref().is_some_and(|(of, _)| *of == document);
        let condition = if !world.broker.reaches(me) {
            Condition::Any
        } else if is_deferred {
            Condition::HoldsOnlyDeferred
        } else {
            Condition::EmptyOutbox
        };

        let number = self.next_number();
        self.phase = SaverPhase::Write(Save {
            document,
            id: EntryId { intent, again: self.again },
            loaded: world.mongo.primary.documents[document].etag,
            etag: (me, number),
            number,
            prepared: world.now,
            condition,
            in_doubt: false,
        });
    }

    fn save(&mut self, mut save: Save, me: Name, world: &mut World) {
        let deferred = self.deferred.clone();
        let now = world.now;
        match world.mongo.write(me, |data| execute(data, &save, deferred.as_ref(), me, now)) {
            Answer::Executed => self.phase = SaverPhase::Wait(save),
            Answer::Missed => {
                world.mongo.forget(me);
                let is_same = world.mongo.primary.documents[save.document].etag == save.loaded;
                if !is_same || save.condition == Condition::Any {
                    self.conflict(&save, me, world);
                    return;
                }

                save.number = self.next_number();
                if save.condition == Condition::HoldsOnlyDeferred {
                    self.clear_deferred(world);
                    save.condition = Condition::EmptyOutbox;
                } else {
                    save.condition = Condition::Any;
                }
                self.phase = SaverPhase::Write(save);
            }
        }
    }

    /// Loads the aggregate again, because another writer has saved it since the last load.
    fn conflict(&mut self, save: &Save, me: Name, world: &mut World) {
        let is_own = world.mongo.primary.executed.contains(&(me, save.number));
        if is_own || world.mongo.primary.documents[save.document].etag == save.loaded {
            world.ledger.wrongs.insert(crate::laws::FALSE_CONFLICT);
        }
        self.phase = SaverPhase::Idle;
    }

    /// Handles the answer to the save, or the error that replaces the answer.
    fn learn(&mut self, mut save: Save, me: Name, world: &mut World) {
        let last = world.mongo.last_write(me);
        world.mongo.forget(me);
        if last == Durability::RolledBack {
            // The new primary executes the save now, unless it has executed the save before.
            save.in_doubt = true;
            self.phase = SaverPhase::Write(save);
            return;
        }

        world.ledger.tell(save.id.intent, Told::Applied);
        self.next_wish();
        let is_claimed = save.condition != Condition::Any;
        if save.condition == Condition::HoldsOnlyDeferred {
            self.deferred = None;
        }
        self.phase = SaverPhase::Deliver(if is_claimed {
            let stored = Stored::new(save.id, save.prepared);
            Courier::born_claimed(save.document, INLINE_LEASE, save.etag, save.prepared, stored)
        } else {
            self.clear_deferred(world);
            Courier::new(save.document, INLINE_LEASE, false)
        });
    }

    fn deliver(&mut self, mut courier: Courier, me: Name, world: &mut World) {
        let defers = world.setting.0.defers_clears;
        if let Some(held) = courier.may_defer(world.now).filter(|_| defers).cloned() {
            self.clear_deferred(world);
            self.deferred = Some((courier.document, held));
            self.phase = SaverPhase::Idle;
            return;
        }

        if courier.claims() {
            self.next_number();
        }
        courier.go(me, self.number, world);
        self.phase = if courier.end().is_some() { SaverPhase::Idle } else { SaverPhase::Deliver(courier) };
    }

    fn clear_deferred(&mut self, world: &mut World) {
        if let Some((document, held)) = self.deferred.take() {
            clear(document, &held, &held.delivered, world);
        }
    }

    fn next_wish(&mut self) {
        self.done += 1;
        self.again = 0;
    }

    /// Reports to the caller that no write happened. The caller then asks for the same change again.
    fn refuse(&mut self, save: &Save, world: &mut World) {
        self.phase = SaverPhase::Idle;
        if self.again == 0 {
            self.again = 1;
        } else {
            world.ledger.tell(save.id.intent, Told::Refused);
            self.next_wish();
        }
    }

    /// Stops waiting, because no clear answer arrived by the deadline.
    fn give_up(&mut self, save: &Save, in_doubt: bool, me: Name, world: &mut World) {
        world.mongo.forget(me);
        match given_up(in_doubt) {
            GivenUp::Unknown if world.is_broken(Broken::UnknownIsRefusal) => self.refuse(save, world),
            GivenUp::Unknown => {
                world.ledger.tell(save.id.intent, Told::Unknown);
                self.next_wish();
                self.phase = SaverPhase::Idle;
            }
            GivenUp::NotSent => self.refuse(save, world),
        }
    }

    fn fails(&mut self, error: Verdict, save: Save, me: Name, world: &mut World) -> bool {
        let in_doubt = save.in_doubt && !world.is_broken(Broken::DoubtForgotten);
        match after_failure(error, in_doubt) {
            AfterFailure::NotSent | AfterFailure::Refused => {
                self.refuse(&save, world);
                true
            }
            AfterFailure::InDoubt => {
                world.mongo.forget(me);
                self.phase = SaverPhase::Write(Save { in_doubt: true, ..save });
                true
            }
            AfterFailure::Repeat | AfterFailure::RepeatApart => false,
        }
    }

    fn crash(&mut self, me: Name, world: &mut World) -> bool {
        if matches!(self.phase, SaverPhase::Idle) && self.deferred.is_none() {
            return false;
        }

        world.mongo.forget(me);
        world.doubt_all();
        if matches!(self.phase, SaverPhase::Write(_) | SaverPhase::Wait(_)) {
            self.next_wish();
        }
        self.deferred = None;
        self.phase = SaverPhase::Idle;
        true
    }
}

impl Actor for Saver {
    type Step = SaverStep;

    fn steps(&self, me: Name, world: &World) -> Vec<SaverStep> {
        let mut steps = Vec::new();
        match &self.phase {
            SaverPhase::Idle if self.done < self.wishes.len() => steps.push(SaverStep::Load),
            SaverPhase::Write(_) => steps.push(SaverStep::Save),
            SaverPhase::Wait(_) if is_believed(me, world) => steps.push(SaverStep::Learn),
            SaverPhase::Deliver(courier) if courier.can_go(me, world) => steps.push(SaverStep::Deliver),
            SaverPhase::Idle | SaverPhase::Wait(_) | SaverPhase::Deliver(_) => {}
        }
        if self.deferred.is_some() && matches!(self.phase, SaverPhase::Idle | SaverPhase::Deliver(_)) {
            steps.push(SaverStep::ClearDeferred);
        }
        steps
    }

    fn take(&mut self, step: SaverStep, me: Name, world: &mut World) {
        match (step, std::mem::replace(&mut self.phase, SaverPhase::Idle)) {
            (SaverStep::Load, _) => self.load(me, world),
            (SaverStep::Save, SaverPhase::Write(save)) => self.save(save, me, world),
            (SaverStep::Learn, SaverPhase::Wait(save)) => self.learn(save, me, world),
            (SaverStep::Deliver, SaverPhase::Deliver(courier)) => self.deliver(courier, me, world),
            (SaverStep::ClearDeferred, phase) => {
                self.phase = phase;
                self.clear_deferred(world);
            }
            (_, phase) => self.phase = phase,
        }
    }

    fn uses_broker(&self) -> bool {
        true
    }

    fn strike(&mut self, blow: Blow, me: Name, world: &mut World) -> bool {
        match (blow, self.phase.clone()) {
            (CRASH, _) => self.crash(me, world),
            (ANSWER_LOST, SaverPhase::Wait(save)) => self.fails(Verdict::Unknown, save, me, world),
            (ANSWER_LOST, SaverPhase::Deliver(mut courier)) => {
                let is_lost = courier.loses_answer(me, world);
                self.phase = SaverPhase::Idle;
                is_lost
            }
            (REFUSED, SaverPhase::Write(save)) => self.fails(Verdict::Refused, save, me, world),
            (GIVES_UP, SaverPhase::Write(save)) => {
                self.give_up(&save, save.in_doubt, me, world);
                true
            }
            (GIVES_UP, SaverPhase::Wait(save)) => {
                self.give_up(&save, true, me, world);
                true
            }
            _ => false,
        }
    }
}

/// Whether the application has finished waiting for its last write to reach the majority. In a scenario that breaks the rule that
/// an application must wait, no application waits.
fn is_believed(me: Name, world: &World) -> bool {
    world.is_broken(Broken::DispatchBeforeMajority) || world.mongo.last_write(me) != Durability::Pending
}

/// Executes a save as the server does. If the server has already executed this write, the server only repeats its earlier answer.
fn execute(data: &mut Data, save: &Save, deferred: Option<&(usize, Held)>, me: Name, now: Tick) -> Answer {
    if data.executed.contains(&(me, save.number)) {
        return Answer::Executed;
    }
    let document = &mut data.documents[save.document];
    if document.etag != save.loaded || !meets(document, save, deferred) {
        return Answer::Missed;
    }

    let mut stored = Stored::new(save.id, save.prepared);
    match save.condition {
        Condition::Any => {}
        Condition::HoldsOnlyDeferred | Condition::EmptyOutbox => {
            stored.claim = Some(save.etag);
            stored.available = Some(save.prepared + INLINE_LEASE);
            document.outbox.clear();
        }
    }
    document.outbox.push(stored);
    document.effects.push(save.id.intent);
    document.etag = Some(save.etag);
    data.executed.insert((me, save.number));
    data.changes.push(Change::saved(save.document, now, save.id));
    Answer::Executed
}

/// Whether the outbox matches the filter of a save.
fn meets(document: &Document, save: &Save, deferred: Option<&(usize, Held)>) -> bool {
    match save.condition {
        Condition::Any => true,
        Condition::EmptyOutbox => document.outbox.is_empty(),
        Condition::HoldsOnlyDeferred => deferred.is_some_and(|(_, held)| {
            let is_held =
                |(stored, id): (&Stored, &EntryId)| stored.id == *id && stored.claim == Some(held.token);
            document.outbox.len() == held.delivered.len()
                && document.outbox.iter().zip(&held.delivered).all(is_held)
        }),
    }
}

//! Decides what a save does to the stored messages that it is to cancel, to reschedule or to replace.
//!
//! The decision is made from the stored outbox, which is read for this purpose. The [write](super::write_revised) then
//! requires that the outbox still permits the decision.

use std::collections::HashSet;

use mongodb::bson::{Bson, DateTime, RawDocument, Uuid};

use super::prepare::{Draft, Emptiness, scheduled};
use crate::{
    aggregate::{
        outbox::Outbox,
        revision::{Revised, Revision, RevisionOutcome},
    },
    dispatch::{outcome::as_uuid, oversized::Lease},
    encoding::{bytes::Element, salvage},
    stored::{
        entry::{Entry, NotAnArray, OUTBOX, Slot, read_elements, read_outbox_of},
        free::Freedom,
    },
};

/// A stored outbox, read by a save that revises it.
#[derive(Debug, Default)]
pub(super) struct ReadOutbox {
    elements: Vec<ReadElement>,
}

#[derive(Debug)]
struct ReadElement {
    /// The element's id, even if the element is malformed.
    id: Option<Uuid>,
    /// `None` if the element is malformed.
    entry: Option<Entry>,
    freedom: Freedom,
    bytes: usize,
}

/// What a save does to the stored messages.
#[derive(Debug, Default)]
pub(super) struct RevisionPlan {
    /// What becomes of each message.
    pub(super) revised: Vec<Revised>,
    /// The messages that leave the outbox.
    pub(super) leaving: Vec<Uuid>,
    /// The messages that become due at another time.
    pub(super) rescheduled: Vec<(Uuid, DateTime)>,
    /// Number of elements that stay.
    pub(super) left: usize,
    /// The id of each element, if none of them stays.
    pub(super) all: Vec<Uuid>,
    /// The size of the elements that leave.
    pub(super) bytes: usize,
    pub(super) now: Option<DateTime>,
}

impl ReadOutbox {
    /// Reads the elements of a stored outbox.
    pub(super) fn of(document: &RawDocument) -> Result<Self, NotAnArray> {
        let mut malformed = HashSet::new();
        for slot in read_outbox_of(document)? {
            if let Slot::Unreadable(unreadable) = slot {
                malformed.insert(unreadable.index);
            }
        }

        let mut elements = Vec::new();
        let stored = salvage::field(document, OUTBOX).ok().flatten();
        for (index, element) in stored.iter().filter_map(Element::items).flatten().enumerate() {
            let value = element.read_lossily();
            let entry = if malformed.contains(&index) { None } else { entry_of(&value) };
            let id = value.as_document().and_then(|entry| entry.get("id")).and_then(uuid_of);
            let freedom = entry.as_ref().map_or(Freedom::Free, Freedom::of);
            elements.push(ReadElement { id, entry, freedom, bytes: element.value.len() });
        }
        Ok(Self { elements })
    }

    /// Treats all free messages as being delivered, because another process has the lease on the document.
    pub(super) fn note_other_lease(&mut self) {
        for element in &mut self.elements {
            if element.freedom == Freedom::Free {
                element.freedom = Freedom::InDelivery;
            }
        }
    }

    /// Considers the state of messages that is kept with the lease on the document.
    pub(super) fn note_lease(&mut self, lease: &Lease) {
        for element in &mut self.elements {
            if let Some(kept) = element.id.and_then(|id| lease.freedom_of(id)) {
                element.freedom = kept;
            }
        }
    }

    /// Decides what becomes of the messages.
    pub(super) fn plan(&self, revisions: &[Revision], drafts: &[Draft], now: DateTime) -> RevisionPlan {
        let mut plan = RevisionPlan { now: Some(now), ..RevisionPlan::default() };
        for (message_type, key) in drafts.iter().filter_map(Draft::replaces) {
            self.replace(message_type, key, &mut plan);
        }
        for revision in revisions {
            self.revise(revision, now, &mut plan);
        }

        for element in &self.elements {
            match element.id.filter(|id| plan.leaving.contains(id)) {
                Some(id) => {
                    plan.all.push(id);
                    plan.bytes += element.bytes;
                }
                None => plan.left += 1,
            }
        }
        if plan.left > 0 {
            plan.all.clear();
        }
        plan
    }

    /// Replaces the free messages of this type with this key. Dead ones are left to an operator.
    fn replace(&self, message_type: &str, key: &str, plan: &mut RevisionPlan) {
        for entry in self.elements.iter().filter_map(|element| element.entry.as_ref()) {
            if entry.message_type != message_type || entry.key.as_deref() != Some(key) {
                continue;
            }
            let message = as_uuid(entry.id);
            let outcome = match self.outcome_for(entry.id) {
                None => RevisionOutcome::Replaced,
                Some(RevisionOutcome::TooLate) => RevisionOutcome::TooLate,
                Some(_) => continue,
            };
            if !plan.has(message) {
                plan.revised.push(Revised { message, outcome });
                if outcome == RevisionOutcome::Replaced {
                    plan.leaving.push(entry.id);
                }
            }
        }
    }

    fn revise(&self, revision: &Revision, now: DateTime, plan: &mut RevisionPlan) {
        let message = revision.message();
        if plan.has(message) {
            return;
        }

        let id = Uuid::from_bytes(message.into_bytes());
        let outcome = self.outcome_for(id).unwrap_or_else(|| match revision {
            Revision::Cancel(_) => {
                plan.leaving.push(id);
                RevisionOutcome::Cancelled
            }
            Revision::Reschedule(_, when) => {
                plan.rescheduled.push((id, scheduled(*when, now).unwrap_or(now)));
                RevisionOutcome::Rescheduled
            }
        });
        plan.revised.push(Revised { message, outcome });
    }

    /// Returns why a message can't be changed. `None` if it can: all its elements are free.
    fn outcome_for(&self, id: Uuid) -> Option<RevisionOutcome> {
        let mut outcome = Some(RevisionOutcome::NotThere);
        for element in self.elements.iter().filter(|element| element.id == Some(id)) {
            if element.entry.is_none() {
                return Some(RevisionOutcome::Unreadable);
            }
            match element.freedom {
                Freedom::Dead => return Some(RevisionOutcome::Dead),
                Freedom::InDelivery => outcome = Some(RevisionOutcome::TooLate),
                Freedom::Free if outcome == Some(RevisionOutcome::NotThere) => outcome = None,
                Freedom::Free => {}
            }
        }
        outcome
    }
}

impl RevisionPlan {
    /// Whether the save changes a stored message.
    pub(super) fn changes_entries(&self) -> bool {
        !self.leaving.is_empty() || !self.rescheduled.is_empty()
    }

    /// Whether the outbox is empty after the stored messages of this decision have left it.
    pub(super) fn emptiness(&self) -> Emptiness {
        if self.left == 0 { Emptiness::Known } else { Emptiness::Unlikely }
    }

    /// The messages that become due at once.
    pub(super) fn made_due(&self) -> Vec<Uuid> {
        let due = self.rescheduled.iter().filter(|(_, at)| self.now.is_some_and(|now| *at <= now));
        due.map(|(id, _)| *id).collect()
    }

    fn has(&self, message: uuid::Uuid) -> bool {
        self.revised.iter().any(|revised| revised.message == message)
    }
}

/// The outcomes of an outbox's revisions if no message is stored.
pub(super) fn none_there(outbox: &Outbox) -> Vec<Revised> {
    let mut revised = Vec::new();
    for revision in outbox.revisions() {
        revised.push(Revised { message: revision.message(), outcome: RevisionOutcome::NotThere });
    }
    revised
}

/// Reads an element by itself. Its neighbours have been considered before.
fn entry_of(element: &Bson) -> Option<Entry> {
    match read_elements(std::slice::from_ref(element)).pop() {
        Some(Slot::Entry(entry)) => Some(*entry),
        Some(Slot::Unreadable(_)) | None => None,
    }
}

fn uuid_of(value: &Bson) -> Option<Uuid> {
    match value {
        Bson::Binary(binary) => binary.to_uuid().ok(),
        _ => None,
    }
}

//! The lease of a document that has no room for a claim.
//!
//! The state of such a document's messages (failed attempts, deaths) is kept with the lease and not in the document, so
//! the document alone does not say what becomes of its messages.

use document_outbox::{
    DocumentRef,
    internal::{Dead, Entry, Slot},
};
use mongodb::{
    bson::{Bson, DateTime, Document, Uuid, doc},
    options::{ReadPreference, SelectionCriteria},
};
use serde::Serialize;

use crate::{Operator, error::OperateError, text};

/// The heading in docs/operations.md that says what to do.
pub(crate) const RUNBOOK: &str = "Documents grow too large";

/// The lease of a document that is too large for a claim.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OversizedLease {
    /// The process that delivers its messages.
    pub owner: Option<String>,
    /// When the lease ends; `None` if no process has it.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub until: Option<DateTime>,
    /// The number of messages that failed.
    pub failed: usize,
    /// The number of dead messages, which are not marked in the document.
    pub dead: usize,
    #[serde(skip)]
    states: States,
}

/// What the lease keeps of each message.
#[derive(Debug, Clone, PartialEq)]
struct States {
    failed: Vec<Document>,
    dead: Vec<Document>,
}

impl Operator {
    /// Reads the lease from the primary, because a lease that ended or began must not be overlooked.
    pub(crate) async fn oversized(
        &self,
        document: &DocumentRef,
    ) -> Result<Option<OversizedLease>, OperateError> {
        let leases = self.state_database().collection::<Document>("leases");
        let filter = doc! {
            "kind": "oversized",
            "_id.ns": document.namespace.to_string(),
            "_id.key._id": { "$eq": document.id() },
        };
        let lease = leases
            .find_one(filter)
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .max_time(self.settings.max_time)
            .await;
        Ok(lease.map_err(OperateError::reading("the leases"))?.map(|lease| OversizedLease::read(&lease)))
    }
}

impl OversizedLease {
    fn read(lease: &Document) -> Self {
        let list = |name: &str| -> Vec<Document> {
            let elements = lease.get_array(name).map(Vec::as_slice).unwrap_or_default();
            elements.iter().filter_map(|element| element.as_document().cloned()).collect()
        };
        let states = States { failed: list("failed"), dead: list("dead") };
        Self {
            owner: lease.get_str("owner").ok().map(str::to_owned),
            until: lease.get_datetime("until").ok().copied(),
            failed: states.failed.len(),
            dead: states.dead.len(),
            states,
        }
    }

    /// Whether a process may deliver the document's messages at this time.
    pub(crate) fn is_held(&self, now: DateTime) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// Whether the lease keeps the state of a message.
    pub(crate) fn keeps(&self, id: Uuid) -> bool {
        of(&self.states.failed, id).is_some() || of(&self.states.dead, id).is_some()
    }

    /// Adds the kept states to the messages, by the rules of the library's dispatcher.
    pub(crate) fn complete(&self, slots: &mut [Slot]) {
        for slot in slots {
            let Slot::Entry(entry) = slot else { continue };
            if let Some(failed) = of(&self.states.failed, entry.id) {
                put_off(entry, failed);
            }
            if let Some(dead) = of(&self.states.dead, entry.id) {
                let at = dead.get_datetime("dead_at").ok().copied().or(self.until);
                entry.dead = Some(Dead {
                    at: at.unwrap_or(DateTime::MIN),
                    reason: dead.get_str("dead_reason").unwrap_or_default().into(),
                });
                entry.last_error = dead.get_str("last_error").ok().map(str::to_owned);
            }
        }
    }

    /// What the lease means for a message, in sentences.
    pub(crate) fn sentences(&self, id: Option<Uuid>, now: DateTime) -> Vec<String> {
        let mut sentences = vec![
            "The document has no room for a claim, so its messages are delivered one at a time, under a lease."
                .to_owned(),
        ];
        if self.is_held(now) {
            let owner = self.owner.as_deref().unwrap_or("A process");
            sentences.push(format!("{owner} has the lease at the moment."));
        }
        if id.is_some_and(|id| self.keeps(id)) {
            sentences.push(
                "The lease keeps the state of this message, which the lists and the counts do not show."
                    .to_owned(),
            );
        }
        sentences
    }
}

fn of(list: &[Document], id: Uuid) -> Option<&Document> {
    let id = Bson::from(id);
    list.iter().find(|of| of.get("id") == Some(&id))
}

fn put_off(entry: &mut Entry, failed: &Document) {
    let attempts = i64::from(failed.get_i32("attempts").unwrap_or(0));
    // If the document had room after the lease was released, the state in the document may be newer.
    if attempts < entry.attempts {
        return;
    }
    entry.attempts = attempts;
    entry.available_at = failed.get_datetime("retry_at").ok().copied();
    entry.last_error = failed.get_str("last_error").ok().map(str::to_owned);
    entry.claimed_by = None;
}

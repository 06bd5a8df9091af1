//! The acts of the audit trail on a message: the ones that came after another act, and whether they changed the message.

use mongodb::bson::{DateTime, Document, Uuid, doc};

use super::{
    Act,
    audit::{text_of, uuid_of},
};
use crate::{Operator, error::OperateError, text};

/// An act of the trail.
#[derive(Debug, Clone)]
pub(super) struct PastAct {
    id: Uuid,
    operation: Option<Uuid>,
    act: String,
    at: DateTime,
    by: String,
    place: MessagePlace,
    /// `None` if there is no outcome.
    result: Option<String>,
}

/// A message in a document. A copied document has the same message.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MessagePlace {
    ns: String,
    key: Document,
    pub(super) message: Uuid,
}

impl MessagePlace {
    /// The place that a record of the trail or of the archive names.
    pub(super) fn of_record(record: &Document) -> Option<Self> {
        Some(Self {
            ns: text_of(record, "ns")?,
            key: record.get_document("key").ok()?.clone(),
            message: record.get("message").and_then(uuid_of)?,
        })
    }
}

impl PastAct {
    fn read(intent: &Document) -> Option<Self> {
        Some(Self {
            id: uuid_of(intent.get("_id")?)?,
            operation: intent.get("operation").and_then(uuid_of),
            act: text_of(intent, "act")?,
            at: *intent.get_datetime("at").ok()?,
            by: text_of(intent, "by").unwrap_or_default(),
            place: MessagePlace::of_record(intent)?,
            result: None,
        })
    }

    pub(super) fn is(&self, act: Act) -> bool {
        self.act == act.as_str()
    }

    /// Whether the act changed its message: `Some(false)` if it certainly did not, `None` if that is not known.
    pub(super) fn changed(&self) -> Option<bool> {
        match self.result.as_deref() {
            Some("done") => Some(true),
            Some("changed" | "failed" | "not_done") => Some(false),
            _ => None,
        }
    }

    /// Whether both acts leave the same evidence.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        self.act == other.act
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    pub(super) fn has_outcome(&self) -> bool {
        self.result.is_some()
    }

    fn order(&self) -> (DateTime, [u8; 16]) {
        (self.at, self.id.bytes())
    }

    /// The act in words.
    pub(super) fn described(&self) -> String {
        let result = self.result.as_deref().unwrap_or("no outcome");
        format!("{} by {} at {}: {result}", self.act, self.by, text::date(self.at))
    }
}

/// The acts on some messages, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Trail(Vec<PastAct>);

impl Trail {
    /// The act of an intent.
    pub(super) fn act(&self, intent: Uuid) -> Option<&PastAct> {
        self.0.iter().find(|act| act.id == intent)
    }

    /// The discard that made a record of the archive.
    pub(super) fn discard_of(&self, record: &Document) -> Option<&PastAct> {
        let place = MessagePlace::of_record(record)?;
        let operation = record.get("operation").and_then(uuid_of)?;
        self.0
            .iter()
            .find(|act| act.is(Act::Discard) && act.operation == Some(operation) && act.place == place)
    }

    /// The acts on the same message after an act that changed the message, or may have changed it.
    pub(super) fn after<'a>(&'a self, first: &'a PastAct) -> impl Iterator<Item = &'a PastAct> {
        let is_later = |act: &&PastAct| act.place == first.place && act.order() > first.order();
        self.0.iter().filter(is_later).filter(|act| act.changed() != Some(false))
    }
}

impl Operator {
    /// Reads the acts on messages.
    pub(super) async fn trail(&self, messages: &[Uuid]) -> Result<Trail, OperateError> {
        let about = doc! {
            "kind": "intent", "message": { "$in": messages }, "act": { "$ne": Act::Reveal.as_str() },
        };
        let intents = self.audit_records(about).await?;
        let mut acts: Vec<PastAct> = intents.iter().filter_map(PastAct::read).collect();

        let ids: Vec<Uuid> = acts.iter().map(|act| act.id).collect();
        let mut outcomes = self.audit_records(doc! { "intent": { "$in": ids } }).await?;
        outcomes.sort_by_key(|outcome| outcome.get_datetime("at").ok().copied());
        for outcome in outcomes {
            let intent = outcome.get("intent").and_then(uuid_of);
            if let Some(act) = acts.iter_mut().find(|act| Some(act.id) == intent) {
                act.result = text_of(&outcome, "result");
            }
        }
        acts.sort_by_key(PastAct::order);
        Ok(Trail(acts))
    }

    async fn audit_records(&self, filter: Document) -> Result<Vec<Document>, OperateError> {
        let audit = self.audit_collection();
        let found = audit.find(filter).max_time(self.settings.max_time).await;
        let mut cursor = found.map_err(OperateError::reading("the audit trail"))?;
        let mut records = Vec::new();
        while cursor.advance().await.map_err(OperateError::reading("the audit trail"))? {
            records.push(cursor.deserialize_current().map_err(OperateError::reading("the audit trail"))?);
        }
        Ok(records)
    }
}

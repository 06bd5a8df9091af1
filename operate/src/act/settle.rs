//! Adds the missing outcomes of acts that were interrupted.

use std::time::Duration;

use document_outbox::internal::read_outbox_of;
use mongodb::bson::{DateTime, Document, doc};

use super::{
    Act,
    audit::{document_of, outcome, uuid_of},
};
use crate::{Operator, error::OperateError, query::Moment};

/// An intent that is younger may belong to an act that is under way.
const UNDER_WAY: Duration = Duration::from_mins(5);
/// The number of intents that are settled at a time.
const MOST: i64 = 1_000;

impl Operator {
    /// Adds an outcome to every intent that has none and is older than five minutes: `done` if the message is no longer
    /// as it was shown, `not_done` if it is. Returns the number of outcomes.
    pub async fn settle(&self) -> Result<usize, OperateError> {
        let now = self.now().await?;
        let before = Moment::Ago(UNDER_WAY).at(now);
        self.settle_before(before).await
    }

    /// Settles the intents before a time.
    pub async fn settle_before(&self, before: DateTime) -> Result<usize, OperateError> {
        let pipeline = vec![
            doc! { "$match": { "kind": "intent", "at": { "$lte": before }, "act": { "$ne": Act::Reveal.as_str() } } },
            doc! { "$lookup": { "from": super::audit::AUDIT, "localField": "_id", "foreignField": "intent", "as": "outcomes" } },
            doc! { "$match": { "outcomes": [] } },
            doc! { "$limit": MOST },
        ];
        let audit = self.audit_collection();
        let found = audit.aggregate(pipeline).max_time(self.settings.max_time).await;
        let mut cursor = found.map_err(OperateError::reading("the audit trail"))?;
        let mut settled = 0;
        while cursor.advance().await.map_err(OperateError::reading("the audit trail"))? {
            let intent: Document =
                cursor.deserialize_current().map_err(OperateError::reading("the audit trail"))?;
            let Some(record) = self.settled(&intent).await? else { continue };
            self.record(&[record]).await?;
            settled += 1;
        }
        Ok(settled)
    }

    /// The outcome of an intent, by the present state of its message.
    async fn settled(&self, intent: &Document) -> Result<Option<Document>, OperateError> {
        let ids = (intent.get("_id").and_then(uuid_of), intent.get("operation").and_then(uuid_of));
        let ((Some(id), Some(operation)), Some(document)) = (ids, document_of(intent)) else {
            return Ok(None);
        };
        let Some(message) = intent.get("message").and_then(uuid_of) else { return Ok(None) };

        let found = self
            .collection(&document.namespace)
            .find_one(document.filter())
            .projection(doc! { "outbox": 1 })
            .max_time(self.settings.max_time)
            .await
            .map_err(OperateError::reading(document.namespace.to_string()))?;
        let slots = found.and_then(|found| read_outbox_of(&found).ok()).unwrap_or_default();
        let entry = slots.iter().filter_map(|slot| slot.entry()).find(|entry| entry.id == message);

        let shown = intent.get_document("shown").cloned().unwrap_or_default();
        let date = |name: &str| shown.get_datetime(name).ok().copied();
        let is_restore = intent.get_str("act").is_ok_and(|act| act == Act::Restore.as_str());
        let is_as_shown = entry.is_some_and(|entry| {
            entry.dead.as_ref().map(|dead| dead.at) == date("dead_at")
                && entry.available_at == date("available_at")
        });
        // A restore is done if the message is there again.
        let is_done = if is_restore { entry.is_some() } else { !is_as_shown };
        let result = if is_done { "done" } else { "not_done" };
        let detail = "the tool was interrupted; found later";
        Ok(Some(outcome(operation, id, result, Some(detail), self.now().await?)))
    }
}

//! Adds the missing outcomes of acts that were interrupted.
//!
//! The trail is evidence of who did what, and can't be corrected. So an outcome is `done` only if the message shows what
//! this act does and no other act of the trail can have done it; `not_done` only if the message is as it was shown and no
//! later act may have changed it; otherwise `unknown`.

use std::time::Duration;

use document_outbox::internal::read_outbox_of;
use mongodb::{
    bson::{DateTime, Document, RawDocumentBuf, Uuid, doc},
    options::ReadConcern,
};

use super::{
    Act,
    audit::{document_of, outcome, text_of, uuid_of},
    concern::primary,
    execute::NOT_DONE,
    trail::{MessagePlace, PastAct, Trail},
};
use crate::{Operator, error::OperateError, list::Row, query::Moment};

/// An intent that is younger may belong to an act that is under way.
const UNDER_WAY: Duration = Duration::from_mins(5);
/// The number of intents that are settled at a time.
const MOST: i64 = 1_000;
/// The reason of a death by a kill.
const OPERATOR: &str = "operator";

/// What is left of a message.
struct Found {
    element: Document,
    row: Row,
}

impl Operator {
    /// Adds an outcome to every intent that has none and is older than five minutes: `done`, `not_done`, or `unknown` if
    /// there is no evidence of either. Returns the number of outcomes.
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

    /// The outcome of an intent, by the evidence.
    async fn settled(&self, intent: &Document) -> Result<Option<Document>, OperateError> {
        let ids = (intent.get("_id").and_then(uuid_of), intent.get("operation").and_then(uuid_of));
        let (Some(id), Some(operation)) = ids else { return Ok(None) };
        let Some(place) = MessagePlace::of_record(intent) else { return Ok(None) };

        let trail = self.trail(&[place.message]).await?;
        let Some(act) = trail.act(id) else { return Ok(None) };
        let is_archived = self.has_record(&trail, act, place.message).await?;
        let found = self.found(intent, place.message).await?;
        let (result, detail) = judge(intent, act, found.as_ref(), is_archived, &trail);
        let detail = format!("the tool was interrupted; {detail}");
        Ok(Some(outcome(operation, id, result, Some(&detail), self.now().await?)))
    }

    /// The message of an intent, as the majority has it.
    async fn found(&self, intent: &Document, message: Uuid) -> Result<Option<Found>, OperateError> {
        let Some(document) = document_of(intent) else { return Ok(None) };
        let namespace = &document.namespace;
        let collection = self.client.database(&namespace.db).collection::<RawDocumentBuf>(&namespace.coll);
        let stored = collection
            .find_one(document.filter())
            .projection(doc! { "outbox": 1 })
            .selection_criteria(primary())
            .read_concern(ReadConcern::majority())
            .max_time(self.settings.max_time)
            .await
            .map_err(OperateError::reading(namespace.to_string()))?;
        let Some(raw) = stored else { return Ok(None) };

        let slots = read_outbox_of(&raw).unwrap_or_default();
        let slot = slots.iter().find(|slot| slot.entry().is_some_and(|entry| entry.id == message));
        let Some(slot) = slot else { return Ok(None) };
        let row = Row::of(&document, 1, slot, DateTime::from_millis(0));
        let element = crate::find::stored(&raw, message).unwrap_or_default();
        Ok(Some(Found { element, row }))
    }

    /// Whether the archive has the record of a discard.
    async fn has_record(&self, trail: &Trail, act: &PastAct, message: Uuid) -> Result<bool, OperateError> {
        if !act.is(Act::Discard) {
            return Ok(false);
        }
        let archive = self.archive();
        let found = archive
            .find(doc! { "message": message })
            .projection(doc! { "entry": 0 })
            .max_time(self.settings.max_time)
            .await;
        let mut cursor = found.map_err(OperateError::reading("the archive"))?;
        while cursor.advance().await.map_err(OperateError::reading("the archive"))? {
            let record: Document =
                cursor.deserialize_current().map_err(OperateError::reading("the archive"))?;
            if trail.discard_of(&record).is_some_and(|discard| discard.is_same(act)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The result of an act, and why.
fn judge(
    intent: &Document,
    act: &PastAct,
    found: Option<&Found>,
    is_archived: bool,
    trail: &Trail,
) -> (&'static str, &'static str) {
    let is_last = trail.after(act).next().is_none();
    let has_repeat = trail.after(act).any(|later| later.is_alike(act));
    if let Some(found) = found
        && is_as_shown(intent, &found.row)
        && is_last
        && !act.is(Act::Restore)
    {
        return (NOT_DONE, "the message is as it was shown");
    }

    let is_done = if act.is(Act::Restore) {
        is_last && found.is_some_and(|found| is_as_shown(intent, &found.row))
    } else if act.is(Act::Discard) {
        is_last && is_archived && found.is_none()
    } else {
        !has_repeat && found.is_some_and(|found| shows(intent, act, found))
    };
    if is_done {
        return ("done", "the message shows this act");
    }
    let is_absent = act.is(Act::Restore) && is_last && found.is_none();
    if is_absent {
        return (NOT_DONE, "the message has not returned to its outbox");
    }
    ("unknown", "the message has changed since then, and nothing shows by which act")
}

/// Whether a message shows what a replay or a kill writes. A release leaves nothing that its claim's holder would not
/// leave.
fn shows(intent: &Document, act: &PastAct, found: &Found) -> bool {
    let Ok(intended) = intent.get_datetime("at") else { return false };
    if act.is(Act::Replay) {
        let by = text_of(intent, "by");
        let replayed_at = found.element.get_datetime("replayed_at");
        return replayed_at.is_ok_and(|at| at >= intended) && text_of(&found.element, "replayed_by") == by;
    }
    act.is(Act::Kill)
        && found.row.dead_reason.as_deref() == Some(OPERATOR)
        && found.row.dead_at.is_some_and(|at| at >= *intended)
}

/// Whether a message is in the state that its intent shows.
fn is_as_shown(intent: &Document, row: &Row) -> bool {
    let Ok(shown) = intent.get_document("shown") else { return false };
    let date = |name: &str| shown.get_datetime(name).ok().copied();
    row.dead_at == date("dead_at")
        && row.available_at == date("available_at")
        && row.claimed_by == text_of(shown, "claimed_by")
        && shown.get_i64("attempts").ok() == Some(row.attempts)
        && shown.get_i64("claims").ok() == Some(row.claims)
}

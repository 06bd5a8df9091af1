//! Returns messages from the archive to their outboxes.
//!
//! A record of the archive alone does not prove that its message left the outbox: a discard writes the record first, and
//! can end before it removes the message. Nor does it show that the message was restored meanwhile. So a restore asks the
//! audit trail, and takes a record only if its discard is done and no later act may have changed the message. Otherwise a
//! message could be delivered a second time.

use document_outbox::{DocumentRef, internal::read_outbox_of};
use mongodb::bson::{DateTime, Document, RawDocumentBuf, Uuid, doc};

use super::{
    Act, ActOutcome, ActSum, Acted, Force, Target,
    audit::{Author, Operation, document_of, new_id, uuid_of},
    trail::{MessagePlace, PastAct, Trail},
};
use crate::{Operator, error::OperateError, list::Row};

/// The number of times that a place in an outbox is determined, while the outbox changes.
const TRIES: usize = 5;

impl Operator {
    /// Returns discarded messages to their places. The archive keeps its records.
    ///
    /// # Errors
    /// An error if no message was tried. A later error is in the sum.
    pub async fn restore(
        &self,
        ids: &[Uuid],
        author: Author,
        report: impl FnMut(&Acted),
    ) -> Result<ActSum, OperateError> {
        self.restore_with(ids, Force::Never, author, report).await
    }

    /// Returns messages to their places, whatever the audit trail says about their records.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub async fn restore_by_force(
        &self,
        ids: &[Uuid],
        author: Author,
        report: impl FnMut(&Acted),
    ) -> Result<ActSum, OperateError> {
        self.restore_with(ids, Force::Accepted, author, report).await
    }

    async fn restore_with(
        &self,
        ids: &[Uuid],
        force: Force,
        author: Author,
        mut report: impl FnMut(&Acted),
    ) -> Result<ActSum, OperateError> {
        if author.reason.trim().is_empty() {
            return Err(OperateError::Argument("an act needs a reason".to_owned()));
        }
        // All records are looked up before the first act, so that a wrong id changes nothing.
        let mut chosen = Vec::new();
        for id in ids {
            chosen.push(self.choose(*id).await?);
        }

        let operation = Operation {
            id: new_id(),
            act: Act::Restore,
            author,
            mongodb_user: self.mongodb_user().await?,
            query: None,
        };
        let mut sum = ActSum::new(operation.id);
        for (tried, (record, objection)) in chosen.iter().enumerate() {
            let objection = objection.as_ref().filter(|_| force == Force::Never);
            match self.restore_one(record, objection, &operation).await {
                Ok(acted) => {
                    sum.add(&acted.outcome);
                    report(&acted);
                }
                Err(error) if tried == 0 => return Err(error),
                Err(error) => {
                    sum.error = Some(error.to_string());
                    sum.left = chosen.len() - tried;
                    break;
                }
            }
        }
        Ok(sum)
    }

    /// The record to restore, and what speaks against it. Of each document only the newest record counts, because an
    /// older one was used up.
    async fn choose(&self, id: Uuid) -> Result<(Document, Option<String>), OperateError> {
        let archive = self.archive();
        let found = archive
            .find(doc! { "message": id })
            .sort(doc! { "archived_at": -1 })
            .max_time(self.settings.max_time)
            .await;
        let mut cursor = found.map_err(OperateError::reading("the archive"))?;
        let trail = self.trail(&[id]).await?;
        let mut seen: Vec<Option<MessagePlace>> = Vec::new();
        let mut newest = None;
        while cursor.advance().await.map_err(OperateError::reading("the archive"))? {
            let record: Document =
                cursor.deserialize_current().map_err(OperateError::reading("the archive"))?;
            let place = MessagePlace::of_record(&record);
            if seen.contains(&place) {
                continue;
            }
            // The record of a discard that did nothing says nothing about the records before it.
            if trail.discard_of(&record).is_none_or(|discard| discard.changed() != Some(false)) {
                seen.push(place);
            }
            let objection = objection(&record, &trail);
            if objection.is_none() {
                return Ok((record, None));
            }
            newest.get_or_insert((record, objection));
        }
        newest.ok_or_else(|| OperateError::NotFound(format!("the archive has no message {id}")))
    }

    async fn restore_one(
        &self,
        record: &Document,
        objection: Option<&String>,
        operation: &Operation,
    ) -> Result<Acted, OperateError> {
        let damaged = || OperateError::Argument("the record in the archive is damaged".to_owned());
        let document = document_of(record).ok_or_else(damaged)?;
        let entry = record.get_document("entry").map_err(|_| damaged())?;
        let now = self.now().await?;
        let shown = shown(&document, entry, now).ok_or_else(damaged)?;
        if let Some(objection) = objection {
            return Ok(Acted { shown, outcome: ActOutcome::Failed(objection.clone()) });
        }

        let intent = new_id();
        let target = Target { document, shown };
        self.record(&[operation.intent(intent, &target, now)]).await?;
        let outcome = self.push_back(&target.document, entry, record).await;
        let now = self.now().await.unwrap_or(now);
        // The message was tried, so its result is reported even if it can't be recorded.
        let outcome = match self.record(&[operation.outcome(intent, &outcome, now)]).await {
            Ok(()) => outcome,
            Err(error) => {
                ActOutcome::Unknown(format!("{}, but it is not recorded: {error}", outcome.as_str()))
            }
        };
        Ok(Acted { shown: target.shown, outcome })
    }

    /// Puts an entry back, if the outbox has no element with its id.
    async fn push_back(&self, document: &DocumentRef, entry: &Document, record: &Document) -> ActOutcome {
        let neighbour = |name: &str| record.get(name).and_then(uuid_of);
        for _ in 0..TRIES {
            let raw = match self.read_outbox(document).await {
                Ok(Some(raw)) => raw,
                Ok(None) => return ActOutcome::Failed("its document no longer exists".to_owned()),
                Err(error) => return ActOutcome::Failed(error.to_string()),
            };
            let place = place(&raw, neighbour("previous"), neighbour("next"));
            let mut filter = document.filter();
            filter.insert("outbox.id", doc! { "$ne": entry.get("id").cloned() });
            if let Some((index, id)) = place.known {
                filter.insert(format!("outbox.{index}.id"), id);
            }
            let push = doc! { "$each": [entry.clone()], "$position": place.index };
            match self.update(document, filter, doc! { "$push": { "outbox": push } }, None).await {
                ActOutcome::Changed if !has(&raw, entry) => {}
                outcome => return outcome,
            }
        }
        ActOutcome::Failed("its outbox changed during every try; try again".to_owned())
    }
}

/// Why a record must not be restored.
pub(super) fn objection(record: &Document, trail: &Trail) -> Option<String> {
    let is_dead = record.get_document("entry").is_ok_and(|entry| entry.get_datetime("dead_at").is_ok());
    if !is_dead {
        return Some(
            "the archived entry is not dead, so it would be delivered at once; accept that with --force"
                .to_owned(),
        );
    }
    let Some(discard) = trail.discard_of(record) else {
        return Some("the audit trail has no discard for its record; accept that with --force".to_owned());
    };
    if discard.changed() != Some(true) {
        return Some(format!(
            "it may still be in its outbox, or may have been delivered, because its discard is not done ({}); settle \
             interrupted acts with audit --settle, or accept a second delivery with --force",
            discard.described()
        ));
    }

    let later = first_change_after(trail, discard);
    later.map(|act| {
        format!(
            "it was changed after its discard ({act}), so it may be delivered twice; accept that with --force"
        )
    })
}

/// The first later act that may have changed the message. A restore that was interrupted and that nothing follows can
/// simply be repeated: either the outbox has the message already, or it has not returned.
fn first_change_after(trail: &Trail, discard: &PastAct) -> Option<String> {
    let later: Vec<_> = trail.after(discard).collect();
    let are_interrupted = later.iter().all(|act| act.is(Act::Restore) && !act.has_outcome());
    if are_interrupted {
        return None;
    }
    later.first().map(|act| act.described())
}

/// A place in an outbox.
struct PlaceInOutbox {
    index: i64,
    /// The neighbour that must still be at its index.
    known: Option<(usize, Uuid)>,
}

/// The place before the former successor, or behind the former predecessor, or at the end.
fn place(raw: &RawDocumentBuf, previous: Option<Uuid>, next: Option<Uuid>) -> PlaceInOutbox {
    let mut ids = Vec::new();
    if let Ok(array) = raw.get_array("outbox") {
        for element in array.into_iter().map_while(Result::ok) {
            let id = element.as_document().and_then(|element| element.get_binary("id").ok());
            ids.push(id.and_then(|id| id.bytes.try_into().ok().map(Uuid::from_bytes)));
        }
    }

    let find = |wanted: Option<Uuid>| ids.iter().position(|id| id.is_some() && *id == wanted);
    let index = |at: usize| i64::try_from(at).unwrap_or(i64::MAX);
    match (find(next), find(previous)) {
        (Some(at), _) => PlaceInOutbox { index: index(at), known: next.map(|id| (at, id)) },
        (None, Some(at)) => PlaceInOutbox { index: index(at + 1), known: previous.map(|id| (at, id)) },
        (None, None) => PlaceInOutbox { index: index(ids.len()), known: None },
    }
}

/// Whether an outbox has an element with the id of an entry.
fn has(raw: &RawDocumentBuf, entry: &Document) -> bool {
    let id = entry.get("id").and_then(uuid_of);
    place(raw, None, id).known.is_some()
}

/// The row of an archived entry.
pub(super) fn shown(document: &DocumentRef, entry: &Document, now: DateTime) -> Option<Row> {
    let outbox = RawDocumentBuf::try_from(&doc! { "outbox": [entry.clone()] }).ok()?;
    let slots = read_outbox_of(&outbox).ok()?;
    Some(Row::of(document, 1, slots.first()?, now))
}

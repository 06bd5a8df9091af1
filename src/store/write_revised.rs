//! Writes a save that removes or reschedules stored messages, as one update with a pipeline.
//!
//! A pipeline can remove elements of an array and append others in one update, which operators can't. The stored array is
//! never replaced by an array that was read: the server filters the array that it has at that moment.

use mongodb::bson::{DateTime, Document, RawDocument, RawDocumentBuf, Uuid, doc};

use super::{
    Store,
    error::Error,
    fields::Changes,
    loaded::Loaded,
    prepare::Prepared,
    revise::RevisionPlan,
    write::{Condition, SaveWrite, filter_of, new_etag},
};
use crate::{
    aggregate::Aggregate,
    encoding::{
        bytes::{Builder, Element, List, element, elements},
        codec,
    },
    mongo::{Operators, Update, WriteOutcome},
    stored::{entry::OUTBOX, filter::Filter, free::all_free},
};

/// The condition under which no other process delivers the document's messages without a claim.
#[derive(Debug, Clone, Copy)]
pub(super) enum RoomCondition {
    /// The document has at most this size, so it has room for claims.
    AtMost(usize),
    /// This process has the lease on the document until this server time.
    LeasedUntil(DateTime),
}

/// The outcome of the write.
pub(super) enum RevisionWrite {
    Ended(SaveWrite),
    /// Nothing was written: the document doesn't meet the conditions any more.
    Missed,
}

impl<T: Aggregate> Store<T> {
    /// Writes the save if the messages are still free.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub(super) async fn write_revised(
        &self,
        loaded: &Loaded<T>,
        changes: &Changes,
        prepared: &Prepared,
        plan: &RevisionPlan,
        room: RoomCondition,
    ) -> Result<RevisionWrite, Error> {
        let etag = new_etag();
        let update = Update {
            namespace: loaded.document.namespace.clone(),
            filter: revised_filter(loaded, plan, room)?,
            operators: Operators::Pipeline(pipeline(changes, &etag, &prepared.encoded, plan)?),
            array_filters: Vec::new(),
        };

        Ok(match self.mongo.update(update).await {
            WriteOutcome::Done => RevisionWrite::Ended(SaveWrite::Applied { etag }),
            WriteOutcome::Missed => RevisionWrite::Missed,
            WriteOutcome::Unknown(error) => RevisionWrite::Ended(SaveWrite::Unknown(error)),
            WriteOutcome::Failed(error) => RevisionWrite::Ended(SaveWrite::Failed(error)),
        })
    }
}

/// Builds the filter that matches the document if its etag is unchanged and the plan can be carried out.
fn revised_filter<T>(loaded: &Loaded<T>, plan: &RevisionPlan, room: RoomCondition) -> Result<Filter, Error> {
    let mut filter = Builder::new();
    match filter_of(loaded, &Condition::Any)? {
        Filter::Bytes(bytes) => filter.extend(&bytes),
        Filter::Plain(plain) => filter.extend(&codec::encode(&plain).map_err(Error::of_encoding)?),
    }
    filter.extend(&codec::encode(&conditions(plan, room)).map_err(Error::of_encoding)?);
    Ok(Filter::Bytes(filter.build()))
}

/// Builds the conditions under which the plan can be carried out.
fn conditions(plan: &RevisionPlan, room: RoomCondition) -> Document {
    let mut ids = plan.leaving.clone();
    ids.extend(plan.rescheduled.iter().map(|(id, _)| *id));
    let mut conditions = all_free(&ids);

    conditions.extend(match room {
        RoomCondition::AtMost(bytes) => {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            doc! { "$expr": { "$lte": [{ "$bsonSize": "$$ROOT" }, bytes] } }
        }
        RoomCondition::LeasedUntil(until) => doc! { "$expr": { "$lt": ["$$NOW", until] } },
    });

    // If no element stays, the new entries may be claimed, so no other element may have been added.
    if !plan.all.is_empty() {
        conditions.insert(format!("{OUTBOX}.{}", plan.all.len()), doc! { "$exists": false });
        for (place, id) in plan.all.iter().enumerate() {
            conditions.insert(format!("{OUTBOX}.{place}.id"), id);
        }
    }
    conditions
}

/// Builds the stages. All values of the aggregate and of its messages are literals, because a pipeline would otherwise
/// take texts that begin with `$` for expressions.
fn pipeline(
    changes: &Changes,
    etag: &RawDocument,
    new_entries: &RawDocument,
    plan: &RevisionPlan,
) -> Result<Vec<RawDocumentBuf>, Error> {
    let mut stages = Vec::new();
    if !changes.unset.is_empty() {
        stages.push(codec::encode(&doc! { "$unset": &changes.unset }).map_err(Error::of_encoding)?);
    }

    let mut set = Builder::new();
    let changed = changes.set.clone().build();
    for field in elements(&changed).chain(elements(etag)) {
        set.push_document(field.name, &literal(field));
    }
    let revised = codec::encode(&revised_entries(plan)).map_err(Error::of_encoding)?;
    let Some(revised) = element(&revised, OUTBOX) else {
        return Err(Error::of_encoding("the outbox's expression is empty"));
    };
    match element(new_entries, OUTBOX) {
        Some(new) => {
            let mut parts = List::new();
            parts.push(revised);
            parts.push_document(&literal(new));
            let mut all = Builder::new();
            all.push_array("$concatArrays", parts);
            set.push_document(OUTBOX.as_bytes(), &all.build());
        }
        None => set.push(revised),
    }

    let mut stage = Builder::new();
    stage.push_document(b"$set", &set.build());
    stages.push(stage.build());
    Ok(stages)
}

/// Builds the expression for the stored entries that stay, as the field `outbox` of a document. The filter has made sure
/// that every element with one of these ids is free.
fn revised_entries(plan: &RevisionPlan) -> Document {
    let leaves = doc! { "$in": ["$$entry.id", { "$literal": &plan.leaving }] };
    let staying = doc! { "$filter": { "input": "$outbox", "as": "entry", "cond": { "$not": [leaves] } } };
    if plan.rescheduled.is_empty() {
        return doc! { OUTBOX: staying };
    }

    let branches: Vec<Document> = plan.rescheduled.iter().map(|(id, at)| branch(*id, *at)).collect();
    let entry = doc! { "$switch": { "branches": branches, "default": "$$entry" } };
    doc! { OUTBOX: { "$map": { "input": staying, "as": "entry", "in": entry } } }
}

/// Builds the case of a rescheduled message.
fn branch(id: Uuid, at: DateTime) -> Document {
    let is_it = doc! { "$eq": ["$$entry.id", id] };
    doc! { "case": is_it, "then": { "$mergeObjects": ["$$entry", { "available_at": at }] } }
}

/// Wraps a value so that a pipeline doesn't interpret it.
fn literal(value: Element<'_>) -> RawDocumentBuf {
    let mut literal = Builder::new();
    literal.push(Element { name: b"$literal", ..value });
    literal.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message may be in delivery without a claim only in a large document, and only under the lease.
    #[test]
    fn a_save_requires_room_for_claims_or_a_live_lease() {
        let expression = |room| conditions(&RevisionPlan::default(), room).remove("$expr");
        let is_small = doc! { "$lte": [{ "$bsonSize": "$$ROOT" }, 9_i64] };
        assert_eq!(expression(RoomCondition::AtMost(9)), Some(is_small.into()));
        let until = DateTime::from_millis(9);
        assert_eq!(
            expression(RoomCondition::LeasedUntil(until)),
            Some(doc! { "$lt": ["$$NOW", until] }.into())
        );
    }

    /// New entries may be claimed only if no other element is in the outbox.
    #[test]
    fn a_save_that_leaves_no_element_requires_each_by_its_place() {
        let ids = [Uuid::new(), Uuid::new()];
        let plan = RevisionPlan { leaving: ids.to_vec(), all: ids.to_vec(), ..RevisionPlan::default() };
        let conditions = conditions(&plan, RoomCondition::AtMost(9));
        let places = ["outbox.0.id", "outbox.1.id"].map(|path| conditions.get(path));
        assert_eq!(places, [Some(&ids[0].into()), Some(&ids[1].into())]);
        assert_eq!(conditions.get("outbox.2"), Some(&doc! { "$exists": false }.into()));
    }
}

//! The write of a save: one update, under the strictest condition first.
//!
//! ```text
//! HoldsOnly(taken) ──missed──▶ EmptyOutbox ──missed──▶ Any ──missed──▶ conflict
//! ```
//!
//! A miss is followed by one look at the etag: if that has changed, it is a conflict at once.

use mongodb::{
    bson::{Bson, Document, RawDocumentBuf, doc},
    error::Error as DriverError,
};

use super::{
    Store,
    error::Error,
    fields::Changes,
    loaded::Loaded,
    lookups::Found,
    prepare::{Emptiness, Prepared},
};
use crate::{
    aggregate::Aggregate,
    dispatch::deferred_clears::Taken,
    encoding::{
        bytes::{Builder, Element, element, kind},
        codec,
    },
    mongo::{Delivered, Update, WriteOutcome, deadline::until_deadline},
    stored::{
        entry::{ETAG, OUTBOX},
        ids::new_random,
    },
};

/// A string of no length, as BSON has it.
const EMPTY_STRING: &[u8] = &[1, 0, 0, 0, 0];

/// What the stored outbox must be for a save to be written.
pub(super) enum Condition {
    /// It holds what was delivered under one claim and nothing else: this save takes that out, and its entries are born claimed.
    HoldsOnly(Taken),
    /// It is empty: the entries are born claimed.
    EmptyOutbox,
    /// Anything: the entries are appended, unclaimed.
    Any,
}

/// What became of the write.
pub(super) enum SaveWrite {
    Applied {
        etag: Bson,
    },
    /// Somebody else saved in between.
    Conflict,
    Gone,
    /// It may have been written.
    Unknown(DriverError),
    /// Nothing was written.
    Failed(DriverError),
}

impl<T: Aggregate> Store<T> {
    /// Step 4 of a save. Where the outbox turns out not to be empty, the entries in `prepared` lose their claim.
    ///
    /// # Errors
    /// That of a question between two tries.
    pub(super) async fn write(
        &self,
        loaded: &mut Loaded<T>,
        changes: &Changes,
        prepared: &mut Prepared,
        outbox: Emptiness,
    ) -> Result<SaveWrite, Error> {
        let etag = Bson::from(new_random());
        let mut condition = self.strictest(loaded, prepared);
        loop {
            let update = update_of(loaded, changes, &etag, prepared, &condition)?;
            match self.mongo.update(update).await {
                WriteOutcome::Done => break,
                WriteOutcome::Unknown(error) => return Ok(SaveWrite::Unknown(error)),
                WriteOutcome::Failed(error) => return Ok(SaveWrite::Failed(error)),
                WriteOutcome::Missed => {}
            }

            match self.look_again(loaded).await? {
                // The etag is as loaded, so only the outbox can have been in the way.
                Found::Same => {}
                Found::Changed => return Ok(SaveWrite::Conflict),
                Found::Gone => return Ok(SaveWrite::Gone),
            }
            condition = match condition {
                Condition::HoldsOnly(taken) => {
                    self.clear_instead(loaded, taken).await;
                    Condition::EmptyOutbox
                }
                Condition::EmptyOutbox => {
                    if outbox == Emptiness::Hoped {
                        loaded.hope.was_wrong();
                    }
                    prepared.unclaim(&loaded.document)?;
                    Condition::Any
                }
                Condition::Any => return Ok(SaveWrite::Conflict),
            };
        }

        if let Condition::HoldsOnly(taken) = condition {
            taken.done();
        }
        Ok(SaveWrite::Applied { etag })
    }

    fn strictest(&self, loaded: &Loaded<T>, prepared: &Prepared) -> Condition {
        if !prepared.is_claimed() {
            return Condition::Any;
        }
        match self.inline.deferred_clears().and_then(|deferred| deferred.take(&loaded.document)) {
            Some(taken) => Condition::HoldsOnly(taken),
            None => Condition::EmptyOutbox,
        }
    }

    /// Clears what a save could not take out. What is not cleared by the deadline fails the next try.
    async fn clear_instead(&self, loaded: &Loaded<T>, taken: Taken) {
        drop(taken);
        if let Some(deferred) = self.inline.deferred_clears() {
            until_deadline(deferred.flush(&loaded.document)).await;
        }
    }
}

/// The statement: it changes the document that has the etag as loaded and an outbox by the condition.
fn update_of<T>(
    loaded: &Loaded<T>,
    changes: &Changes,
    etag: &Bson,
    prepared: &Prepared,
    condition: &Condition,
) -> Result<Update, Error> {
    let mut filter = doc! { ETAG: loaded.etag_condition() };
    match condition {
        Condition::HoldsOnly(taken) => filter.extend(holds_only(taken.delivered())),
        Condition::EmptyOutbox => filter.extend(is_empty()),
        Condition::Any => {}
    }

    let mut set = changes.set.clone();
    set.extend(&codec::encode(&doc! { ETAG: etag.clone() }).map_err(Error::of_encoding)?);
    let mut update = Builder::new();
    if !changes.unset.is_empty() {
        update.push_document(b"$unset", &unset(&changes.unset));
    }
    match condition {
        Condition::HoldsOnly(_) => set.extend(&prepared.encoded),
        Condition::EmptyOutbox | Condition::Any => {
            if let Some(entries) = element(&prepared.encoded, OUTBOX) {
                update.push_document(b"$push", &push(entries));
            }
        }
    }
    update.push_document(b"$set", &set.build());

    Ok(Update {
        namespace: loaded.document.namespace.clone(),
        filter: loaded.document.select(filter),
        operators: update.build().into(),
        array_filters: Vec::new(),
    })
}

/// Matches an outbox without entries.
pub(super) fn is_empty() -> Document {
    doc! { format!("{OUTBOX}.0"): { "$exists": false } }
}

/// Matches an outbox that holds these entries, still under their claim, and nothing else.
fn holds_only(delivered: &Delivered) -> Document {
    let mut filter = doc! { format!("{OUTBOX}.{}", delivered.ids.len()): { "$exists": false } };
    for (place, id) in delivered.ids.iter().enumerate() {
        filter.insert(format!("{OUTBOX}.{place}.id"), id);
        filter.insert(format!("{OUTBOX}.{place}.claimed_by"), &delivered.token);
    }
    filter
}

/// The operand that removes these fields.
fn unset(fields: &[String]) -> RawDocumentBuf {
    let mut unset = Builder::new();
    for field in fields {
        unset.push(Element { kind: kind::STRING, name: field.as_bytes(), value: EMPTY_STRING });
    }
    unset.build()
}

/// The operand that appends these entries.
fn push(entries: Element<'_>) -> RawDocumentBuf {
    let mut each = Builder::new();
    each.push(Element { name: b"$each", ..entries });
    let mut push = Builder::new();
    push.push_document(OUTBOX.as_bytes(), &each.build());
    push.build()
}

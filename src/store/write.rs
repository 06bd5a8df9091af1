//! Writes a save as one update, trying the strictest condition first.
//!
//! ```text
//! HoldsOnly(taken) ─────────┐
//!                         missed──▶ EmptyOutbox ──missed──▶ Any ──missed──▶ conflict
//! EmptyOrHoldsOnly(clear) ──┘
//! ```
//!
//! If the update's filter doesn't match, the stored etag is read once. If the etag has changed, the save is a conflict.

use mongodb::{
    bson::{Document, RawDocument, RawDocumentBuf, doc},
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
    dispatch::{clears_under_way::OvertakenClear, deferred_clears::Taken},
    encoding::{
        bytes::{Builder, Element, element, kind},
        codec,
    },
    mongo::{Delivered, Update, WriteOutcome, deadline::until_deadline},
    stored::{
        entry::{ETAG, OUTBOX},
        filter::{Filter, push_equal},
        ids::new_random,
    },
};

/// The path of an outbox's first entry.
const FIRST_ENTRY: &[u8] = b"outbox.0";
/// The size of an empty string in BSON.
const EMPTY_STRING: &[u8] = &[1, 0, 0, 0, 0];

/// The condition that a save puts on the stored outbox.
pub(super) enum Condition {
    /// The outbox has only entries that were delivered under one claim. The save removes those entries and writes its
    /// own entries with a claim.
    HoldsOnly(Taken),
    /// The outbox is empty, or has exactly the entries of a clear that is in progress and that the server may execute
    /// before or after this save. The save writes its entries with a claim.
    EmptyOrHoldsOnly(OvertakenClear),
    /// The outbox is empty. The save writes its entries with a claim.
    EmptyOutbox,
    /// No condition. The entries are appended without a claim.
    Any,
}

impl Condition {
    /// Records that the save's attempt with this condition has certainly written nothing.
    fn was_not_written(&self) {
        if let Self::EmptyOrHoldsOnly(clear) = self {
            clear.missed();
        }
    }
}

/// The outcome of the write.
pub(super) enum SaveWrite {
    Applied {
        etag: RawDocumentBuf,
    },
    /// Another process saved the document after it was loaded.
    Conflict,
    Gone,
    /// The save may have been written.
    Unknown(DriverError),
    /// Nothing was written.
    Failed(DriverError),
}

impl<T: Aggregate> Store<T> {
    /// Writes the save, which is step 4 of a save. If the outbox turns out not to be empty, the entries in `prepared`
    /// lose their claim.
    ///
    /// # Errors
    /// The error of a query between two attempts.
    pub(super) async fn write(
        &self,
        loaded: &mut Loaded<T>,
        changes: &Changes,
        prepared: &mut Prepared,
        outbox: Emptiness,
    ) -> Result<SaveWrite, Error> {
        let etag = new_etag();
        let mut condition = self.strictest(loaded, prepared);
        loop {
            let update = update_of(loaded, changes, &etag, prepared, &condition)?;
            match self.mongo.update(update).await {
                WriteOutcome::Done => break,
                WriteOutcome::Unknown(error) => return Ok(SaveWrite::Unknown(error)),
                WriteOutcome::Failed(error) => {
                    condition.was_not_written();
                    return Ok(SaveWrite::Failed(error));
                }
                WriteOutcome::Missed => condition.was_not_written(),
            }

            match self.look_again(loaded).await? {
                // The etag is unchanged, so only the condition on the outbox can have failed.
                Found::Same => {}
                Found::Changed => return Ok(SaveWrite::Conflict),
                Found::Gone => return Ok(SaveWrite::Gone),
            }
            condition = match condition {
                Condition::HoldsOnly(taken) => {
                    drop(taken);
                    self.wait_for_clears(loaded).await;
                    Condition::EmptyOutbox
                }
                Condition::EmptyOrHoldsOnly(_) => {
                    self.wait_for_clears(loaded).await;
                    Condition::EmptyOutbox
                }
                Condition::EmptyOutbox => {
                    if outbox == Emptiness::Hoped {
                        loaded.assumption.was_wrong();
                    }
                    prepared.unclaim(&loaded.document)?;
                    Condition::Any
                }
                Condition::Any => return Ok(SaveWrite::Conflict),
            };
        }

        match condition {
            Condition::HoldsOnly(taken) => taken.done(),
            Condition::EmptyOrHoldsOnly(clear) => clear.done(),
            Condition::EmptyOutbox | Condition::Any => {}
        }
        Ok(SaveWrite::Applied { etag })
    }

    fn strictest(&self, loaded: &Loaded<T>, prepared: &Prepared) -> Condition {
        if !prepared.is_claimed() {
            return Condition::Any;
        }
        if let Some(taken) =
            self.inline.deferred_clears().and_then(|deferred| deferred.take(&loaded.document))
        {
            return Condition::HoldsOnly(taken);
        }
        match self.inline.clears_under_way().overtake(&loaded.document) {
            Some(clear) => Condition::EmptyOrHoldsOnly(clear),
            None => Condition::EmptyOutbox,
        }
    }

    /// Waits until the messages that a save could not remove have been cleared. If they are not cleared by the
    /// deadline, the next attempt fails.
    async fn wait_for_clears(&self, loaded: &Loaded<T>) {
        until_deadline(self.inline.flush_document(&loaded.document)).await;
    }
}

/// Builds the update statement. Its filter requires the etag from the load and an outbox that meets the condition.
fn update_of<T>(
    loaded: &Loaded<T>,
    changes: &Changes,
    etag: &RawDocument,
    prepared: &Prepared,
    condition: &Condition,
) -> Result<Update, Error> {
    let mut set = changes.set.clone();
    set.extend(etag);
    let mut update = Builder::new();
    if !changes.unset.is_empty() {
        update.push_document(b"$unset", &unset(&changes.unset));
    }
    match condition {
        Condition::HoldsOnly(_) | Condition::EmptyOrHoldsOnly(_) => set.extend(&prepared.encoded),
        Condition::EmptyOutbox | Condition::Any => {
            if let Some(entries) = element(&prepared.encoded, OUTBOX) {
                update.push_document(b"$push", &push(entries));
            }
        }
    }
    update.push_document(b"$set", &set.build());

    Ok(Update {
        namespace: loaded.document.namespace.clone(),
        filter: filter_of(loaded, condition)?,
        operators: update.build().into(),
        array_filters: Vec::new(),
    })
}

/// Creates a fresh etag in its stored form.
pub(super) fn new_etag() -> RawDocumentBuf {
    let mut field = Builder::new();
    field.push_uuid(ETAG, new_random());
    field.build()
}

/// Builds the filter that matches the document if its etag is unchanged since the load and its outbox meets the
/// condition.
pub(super) fn filter_of<T>(loaded: &Loaded<T>, condition: &Condition) -> Result<Filter, Error> {
    let mut filter = Builder::new();
    filter.extend(&loaded.document.filter_bytes());
    match loaded.etag() {
        Some(etag) => push_equal(&mut filter, etag),
        None => filter.push_document(ETAG.as_bytes(), &absent()),
    }

    match condition {
        Condition::HoldsOnly(taken) => {
            let holds_only = codec::encode(&holds_only(taken.delivered())).map_err(Error::of_encoding)?;
            filter.extend(&holds_only);
        }
        Condition::EmptyOrHoldsOnly(clear) => {
            // Require an empty array, and not merely an absent first entry, so that a field `outbox` that is not an
            // array is not overwritten.
            let either = doc! { "$or": [{ OUTBOX: { "$size": 0 } }, holds_only(clear.delivered())] };
            filter.extend(&codec::encode(&either).map_err(Error::of_encoding)?);
        }
        Condition::EmptyOutbox => filter.push_document(FIRST_ENTRY, &absent()),
        Condition::Any => {}
    }
    Ok(Filter::Bytes(filter.build()))
}

/// Builds the operand that matches an absent field.
fn absent() -> RawDocumentBuf {
    let mut absent = Builder::new();
    absent.push_bool("$exists", false);
    absent.build()
}

/// Builds the filter for an outbox that has exactly these entries, still under their claim.
fn holds_only(delivered: &Delivered) -> Document {
    let mut filter = doc! { format!("{OUTBOX}.{}", delivered.ids.len()): { "$exists": false } };
    for (place, id) in delivered.ids.iter().enumerate() {
        filter.insert(format!("{OUTBOX}.{place}.id"), id);
        filter.insert(format!("{OUTBOX}.{place}.claimed_by"), &delivered.token);
    }
    filter
}

/// Builds the operand that removes these fields.
fn unset(fields: &[String]) -> RawDocumentBuf {
    let mut unset = Builder::new();
    for field in fields {
        unset.push(Element { kind: kind::STRING, name: field.as_bytes(), value: EMPTY_STRING });
    }
    unset.build()
}

/// Builds the operand that appends these entries.
fn push(entries: Element<'_>) -> RawDocumentBuf {
    let mut each = Builder::new();
    each.push(Element { name: b"$each", ..entries });
    let mut push = Builder::new();
    push.push_document(OUTBOX.as_bytes(), &each.build());
    push.build()
}

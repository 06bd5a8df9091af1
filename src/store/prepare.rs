//! Prepares a save's messages. Each message becomes an [`Entry`], which is encoded once. Inline delivery delivers the
//! same entry.

use std::collections::BTreeMap;

use mongodb::bson::{Bson, DateTime, RawDocumentBuf, Uuid};
use serde::Serialize;
use tracing::Span;

use super::{
    Store,
    caps::{array_bytes_of, entry_bytes},
    error::Error,
    outcome::Receipt,
};
use crate::{
    aggregate::{
        Aggregate,
        due::Due,
        outbox::{Outbox, PendingMessage},
    },
    dispatch::{Dispatch, claimed_entries::Claim, deliveries::Work, seats::Seat},
    encoding::codec,
    mongo::clock::later,
    observe::trace,
    stored::{
        document_ref::DocumentRef,
        entry::{Entry, OUTBOX},
        memory::weight_of_message,
    },
};

/// A checked message in the form of an entry that has no dates yet.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    entry: Entry,
    due: Due,
    /// The size of the encoded entry with its dates and without a claim.
    bytes: usize,
}

/// Whether the stored outbox is empty. New entries can be written with a claim only into an empty outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emptiness {
    /// As far as is known, the outbox is empty.
    Known,
    /// The entries in the outbox have probably been delivered since the load.
    Hoped,
    /// The outbox probably has other entries.
    Unlikely,
}

/// The claim that new entries are written with.
#[derive(Debug)]
struct Birth {
    token: String,
    until: DateTime,
}

/// A save's messages, ready to be written.
pub(super) struct Prepared {
    /// The entries, in the order sent.
    entries: Vec<Entry>,
    /// The entries in their stored form, as a document with the field `outbox`. An empty document if there are no
    /// entries.
    pub(super) encoded: RawDocumentBuf,
    /// The server time of the save.
    now: DateTime,
    /// Number of entries that are due at once.
    pub(super) due: usize,
    /// The stored messages that the save makes due at once.
    pub(super) made_due: Vec<Uuid>,
    seat: Result<Seat, Dispatch>,
    claim: Option<Birth>,
}

/// The time at which a message is due, if it is in the future.
pub(super) fn scheduled(due: Due, now: DateTime) -> Option<DateTime> {
    let at = match due {
        Due::Now => return None,
        Due::At(at) => at,
        Due::After(after) => later(now, after),
    };
    if at > now { Some(at) } else { None }
}

impl Draft {
    /// The type and the key of the stored messages that this message replaces.
    pub(super) fn replaces(&self) -> Option<(&str, &str)> {
        let key = self.entry.key.as_deref()?;
        Some((&self.entry.message_type, key))
    }

    /// Returns the entry as it is saved at this time. Only an entry that is due now gets the claim.
    fn dated(self, now: DateTime, claim: Option<&Birth>) -> Entry {
        let scheduled = scheduled(self.due, now);
        let mut entry = self.entry;
        entry.created_at = Some(now);
        entry.available_at = Some(scheduled.unwrap_or(now));

        if let Some(claim) = claim
            && scheduled.is_none()
        {
            entry.available_at = Some(claim.until);
            entry.claimed_by = Some(claim.token.clone());
        }
        entry
    }
}

/// Number of these entries that are due now.
fn due_of(drafts: &[Draft], now: DateTime) -> usize {
    drafts.iter().filter(|draft| scheduled(draft.due, now).is_none()).count()
}

/// The size of the field `outbox` with these entries, each with a claim of this size.
pub(super) fn bytes_of(drafts: &[Draft], claim: usize) -> usize {
    if drafts.is_empty() {
        return 0;
    }
    2 + OUTBOX.len() + array_bytes_of(drafts.iter().map(|draft| draft.bytes + claim))
}

impl<T: Aggregate> Store<T> {
    /// Turns the messages of an aggregate into entries without dates, and checks them against the caps.
    ///
    /// # Errors
    /// The error of the first message that can't be stored.
    pub(super) fn drafts(&self, outbox: &Outbox) -> Result<Vec<Draft>, Error> {
        outbox.iter().map(|message| self.draft(message)).collect()
    }

    fn draft(&self, message: &PendingMessage) -> Result<Draft, Error> {
        let (payload, payload_bytes) = self.caps.check_message(message)?;
        let entry = Entry {
            id: message.id,
            message_type: message.message_type.to_owned(),
            payload: payload.clone(),
            headers: trace::stored(message.headers.clone()),
            via: self.inline.via(message.message_type).map(str::to_owned),
            key: message.key.clone(),
            created_at: None,
            available_at: None,
            claimed_by: None,
            attempts: 0,
            claims: 0,
            last_error: None,
            delivered_to: Vec::new(),
            dead: None,
        };
        let bytes = entry_bytes(&entry, payload_bytes);
        Ok(Draft { entry, due: message.due, bytes })
    }

    /// Adds the dates to the entries and encodes the entries. Takes a seat of the inline dispatcher (the right to
    /// deliver one save's messages) if a seat is free. Adds a claim if the outbox may be empty. The seat is also for the
    /// stored messages that the save makes due.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the server must be asked for its time and can't be reached, and [`Error::Encode`].
    pub(super) async fn prepare(
        &self,
        document: &DocumentRef,
        drafts: Vec<Draft>,
        outbox: Emptiness,
        made_due: Vec<Uuid>,
    ) -> Result<Prepared, Error> {
        if drafts.is_empty() && made_due.is_empty() {
            return Ok(Prepared::nothing());
        }
        let now = self.mongo.now().await.map_err(Error::of_read)?;

        let weight = drafts.iter().map(|draft| weight_of_message(&draft.entry.payload)).sum();
        let seat = self.inline.seat_for(due_of(&drafts, now) + made_due.len(), weight);
        let is_for_here = drafts.iter().all(|draft| self.inline.serves(draft.entry.via.as_deref()));
        let claim = if seat.is_ok() && is_for_here && outbox != Emptiness::Unlikely {
            let claimer = self.inline.claimer();
            Some(Birth { token: claimer.token(), until: later(now, claimer.lease) })
        } else {
            None
        };

        let prepared = Prepared::of(document, drafts, now, seat, claim)?;
        Ok(Prepared { made_due, ..prepared })
    }

    /// Adds the dates to entries that the caller will write, and encodes the entries. The entries get no claim, and no
    /// seat of the inline dispatcher is taken for them.
    ///
    /// # Errors
    /// The same errors as [`prepare`](Self::prepare).
    pub(super) async fn prepare_for_others(
        &self,
        document: &DocumentRef,
        drafts: Vec<Draft>,
    ) -> Result<Prepared, Error> {
        let now = self.mongo.now().await.map_err(Error::of_read)?;
        Prepared::of(document, drafts, now, Err(Dispatch::Nothing), None)
    }

    /// Hands the messages of a written save to the inline dispatcher, if a seat was taken for the save.
    pub(super) async fn dispatch(&self, document: &DocumentRef, prepared: Prepared) -> Receipt {
        let Prepared { entries, due, made_due, seat, claim, .. } = prepared;
        self.inline.metrics().sent(entries.len());
        Span::current().record("messaging.batch.message_count", entries.len());

        let mut ids = ids_of(&entries);
        let messages = ids.iter().map(|id| uuid::Uuid::from_bytes(id.bytes())).collect();
        let seat = match seat {
            Ok(seat) => seat,
            Err(why) => {
                self.inline.left(document, due + made_due.len(), &why);
                return Receipt { messages, dispatch: why, revisions: Vec::new() };
            }
        };
        ids.extend(made_due);

        let work = match claim {
            Some(claim) => Work::BornClaimed(claim.of(document, entries)),
            None => Work::Unclaimed(document.clone()),
        };
        let dispatch = self.inline.dispatch(seat, work, ids, T::ORDERING).await;
        Receipt { messages, dispatch, revisions: Vec::new() }
    }
}

impl Birth {
    /// Builds the claim on the entries of a save that are due.
    fn of(self, document: &DocumentRef, mut entries: Vec<Entry>) -> Claim {
        entries.retain(|entry| entry.claimed_by.is_some());
        let Self { token, until } = self;
        Claim { document: document.clone(), token, until, counted: false, entries }
    }
}

impl Prepared {
    fn of(
        document: &DocumentRef,
        drafts: Vec<Draft>,
        now: DateTime,
        seat: Result<Seat, Dispatch>,
        claim: Option<Birth>,
    ) -> Result<Self, Error> {
        let due = due_of(&drafts, now);
        let entries: Vec<_> = drafts.into_iter().map(|draft| draft.dated(now, claim.as_ref())).collect();
        let encoded = encode(document, &entries)?;
        Ok(Self { entries, encoded, now, due, made_due: Vec::new(), seat, claim })
    }

    fn nothing() -> Self {
        Self {
            entries: Vec::new(),
            encoded: RawDocumentBuf::new(),
            now: DateTime::MIN,
            due: 0,
            made_due: Vec::new(),
            seat: Err(Dispatch::Nothing),
            claim: None,
        }
    }

    /// The ids of the messages, in the order sent.
    pub(super) fn ids(&self) -> Vec<Uuid> {
        ids_of(&self.entries)
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.claim.is_some()
    }

    /// Number of bytes that the entries add to their document.
    pub(super) fn bytes(&self) -> usize {
        self.encoded.as_bytes().len() - RawDocumentBuf::new().as_bytes().len()
    }

    /// Removes the claim from the entries, so that they are due at once and anyone can claim them.
    pub(super) fn unclaim(&mut self, document: &DocumentRef) -> Result<(), Error> {
        self.claim = None;
        for entry in &mut self.entries {
            if entry.claimed_by.take().is_some() {
                entry.available_at = Some(self.now);
            }
        }
        self.encoded = encode(document, &self.entries)?;
        Ok(())
    }
}

fn ids_of(entries: &[Entry]) -> Vec<Uuid> {
    entries.iter().map(|entry| entry.id).collect()
}

/// Encodes entries in their stored form, an array in the field `outbox`.
fn encode(document: &DocumentRef, entries: &[Entry]) -> Result<RawDocumentBuf, Error> {
    if entries.is_empty() {
        return Ok(RawDocumentBuf::new());
    }
    let outbox = OutboxField { outbox: entries.iter().map(NewEntry::of).collect() };
    codec::encode(&outbox)
        .map_err(|error| Error::Encode { what: document.to_string(), reason: error.to_string() })
}

#[derive(Serialize)]
struct OutboxField<'a> {
    outbox: Vec<NewEntry<'a>>,
}

/// The stored form of a new entry, without the fields that only deliveries write.
#[derive(Serialize)]
struct NewEntry<'a> {
    id: Uuid,
    #[serde(rename = "type")]
    message_type: &'a str,
    payload: &'a Bson,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    created_at: Option<DateTime>,
    available_at: Option<DateTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claimed_by: Option<&'a str>,
}

impl<'a> NewEntry<'a> {
    fn of(entry: &'a Entry) -> Self {
        Self {
            id: entry.id,
            message_type: &entry.message_type,
            payload: &entry.payload,
            headers: &entry.headers,
            via: entry.via.as_deref(),
            key: entry.key.as_deref(),
            created_at: entry.created_at,
            available_at: entry.available_at,
            claimed_by: entry.claimed_by.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use mongodb::Namespace;

    use super::*;
    use crate::{
        encoding::bytes::element,
        store::caps::{claim_bytes, encoded_bytes, tests::many_values},
        stored::entry::read_outbox_of,
    };

    const NOW: DateTime = DateTime::from_millis(1_000_000);

    fn document() -> DocumentRef {
        DocumentRef::by_id(Namespace::new("shop", "orders"), "o-1")
    }

    fn draft(headers: &[(&str, &str)], via: Option<&str>, due: Due) -> Draft {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let payload = Bson::from(many_values());
        let payload_bytes = encoded_bytes(&payload);
        let entry = Entry {
            id: Uuid::new(),
            message_type: "order.paid".into(),
            payload,
            headers: headers.collect(),
            via: via.map(str::to_owned),
            key: via.map(|_| "a key".to_owned()),
            created_at: None,
            available_at: None,
            claimed_by: None,
            attempts: 0,
            claims: 0,
            last_error: None,
            delivered_to: Vec::new(),
            dead: None,
        };
        let bytes = entry_bytes(&entry, payload_bytes);
        Draft { entry, due, bytes }
    }

    fn claim() -> Birth {
        Birth { token: "p/1".into(), until: DateTime::from_millis(2_000_000) }
    }

    fn prepared(drafts: Vec<Draft>, claim: Option<Birth>) -> Prepared {
        Prepared::of(&document(), drafts, NOW, Err(Dispatch::Off), claim).unwrap()
    }

    /// Decodes the entries as a reader of the stored document would.
    fn stored(prepared: &Prepared) -> Vec<Entry> {
        let slots = read_outbox_of(&prepared.encoded).unwrap();
        slots.iter().map(|slot| slot.entry().unwrap().clone()).collect()
    }

    #[test]
    fn an_entry_is_stored_as_it_is_delivered() {
        let later = Due::At(DateTime::from_millis(3_000_000));
        let drafts = vec![
            draft(&[], None, Due::Now),
            draft(&[("tenant", "north")], Some("handlers"), Due::Now),
            draft(&[], None, later),
        ];
        let mut prepared = prepared(drafts, Some(claim()));
        assert_eq!(stored(&prepared), prepared.entries);
        let claimed: Vec<_> = prepared.entries.iter().map(|entry| entry.claimed_by.is_some()).collect();
        assert_eq!((claimed, prepared.due), (vec![true, true, false], 2));

        prepared.unclaim(&document()).unwrap();
        assert_eq!(stored(&prepared), prepared.entries);
        let dates: Vec<_> = prepared.entries.iter().map(|entry| entry.available_at).collect();
        assert_eq!(dates, [Some(NOW), Some(NOW), Some(DateTime::from_millis(3_000_000))]);
        assert!(prepared.entries.iter().all(|entry| entry.claimed_by.is_none()));
    }

    #[test]
    fn entry_sizes_are_computed_before_encoding() {
        let all = |headers: &[(&str, &str)], via| -> Vec<_> {
            (0..11).map(|_| draft(headers, via, Due::Now)).collect()
        };
        for (headers, via) in [(&[][..], None), (&[("tenant", "north"), ("☃", "")][..], Some("handlers"))] {
            let drafts = all(headers, via);
            let (unclaimed, claimed) = (bytes_of(&drafts, 0), bytes_of(&drafts, claim_bytes("p/1".len())));
            assert_eq!(prepared(drafts, None).bytes(), unclaimed);
            assert_eq!(prepared(all(headers, via), Some(claim())).bytes(), claimed);
        }
        assert_eq!((bytes_of(&[], 7), Prepared::nothing().bytes()), (0, 0));
        assert_eq!(element(&Prepared::nothing().encoded, OUTBOX), None);
    }
}

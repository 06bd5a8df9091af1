//! Entries under a claim, and the update that claims them. The update is encoded directly to bytes, because a
//! dispatcher makes such an update for every message of a backlog.

use mongodb::bson::{DateTime, RawDocumentBuf};

use crate::{
    encoding::bytes::{Builder, List},
    mongo::Update,
    stored::{
        document_ref::DocumentRef,
        entry::{Entry, OUTBOX},
        filter::Filter,
    },
};

/// Entries that one holder has claimed until a given time.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) document: DocumentRef,
    /// The value of `claimed_by`.
    pub(crate) token: String,
    /// The server time at which the claim ends.
    pub(crate) until: DateTime,
    /// Whether this claim was counted in the field `claims` of its entries.
    pub(crate) counted: bool,
    /// The entries as they were before the claim. Entries that were saved with this claim already contain the claim.
    pub(crate) entries: Vec<Entry>,
}

impl Claim {
    /// Returns the update that marks the entries as claimed, if they have not changed since they were read.
    pub(crate) fn update(&self) -> Update {
        let mut unchanged = List::new();
        let mut ids = List::new();
        for entry in &self.entries {
            unchanged.push_document(&within("$elemMatch", &as_read(entry)));
            ids.push_uuid(entry.id);
        }
        let mut all = Builder::new();
        all.push_array("$all", unchanged);

        let mut set = Builder::new();
        set.push_text("outbox.$[e].claimed_by", &self.token);
        set.push_date("outbox.$[e].available_at", self.until);
        let mut operators = Builder::new();
        operators.push_document(b"$set", &set.build());
        if self.counted {
            let mut more = Builder::new();
            more.push_i32("outbox.$[e].claims", 1);
            operators.push_document(b"$inc", &more.build());
        }

        // The array filter must begin with the ids. A filter on types or on absent fields would also select malformed
        // elements, and the server would then refuse the whole update.
        let mut any = Builder::new();
        any.push_array("$in", ids);
        Update {
            namespace: self.document.namespace.clone(),
            filter: self.document.select_bytes(&within(OUTBOX, &all.build())),
            operators: operators.build().into(),
            array_filters: vec![within("e.id", &any.build())],
        }
    }
}

/// Returns a filter that selects the document only if this entry has not changed since it was read.
pub(crate) fn unchanged(document: &DocumentRef, entry: &Entry) -> Filter {
    document.select_bytes(&within(OUTBOX, &within("$elemMatch", &as_read(entry))))
}

/// Builds a filter that requires every field of the entry that can change to have the value that was read. A null also
/// matches an absent field.
///
/// All of these fields are needed: if another process has claimed and released the entry since it was read, the due
/// date may be the same as before although some handlers have received the message.
fn as_read(entry: &Entry) -> RawDocumentBuf {
    let mut read = Builder::new();
    read.push_uuid("id", entry.id);
    match entry.available_at {
        Some(at) => read.push_date("available_at", at),
        None => read.push_null("available_at"),
    }
    match &entry.claimed_by {
        Some(token) => read.push_text("claimed_by", token),
        None => read.push_null("claimed_by"),
    }
    read.push_null("dead_at");
    push_count_as_read(&mut read, "attempts", entry.attempts);
    push_count_as_read(&mut read, "claims", entry.claims);
    push_keys_as_read(&mut read, "delivered_to", &entry.delivered_to);
    read.build()
}

/// Adds the condition that the count `name` has the value that was read. An absent count is read as 0, so 0 also
/// matches an absent field.
fn push_count_as_read(read: &mut Builder, name: &str, count: i64) {
    if count != 0 {
        return read.push_i64(name, count);
    }
    let mut zero = List::new();
    zero.push_null();
    zero.push_i32(0);
    let mut any = Builder::new();
    any.push_array("$in", zero);
    read.push_document(name.as_bytes(), &any.build());
}

/// Adds the condition that the list `name` of handler keys has the value that was read. An absent list is read as an
/// empty list.
fn push_keys_as_read(read: &mut Builder, name: &str, keys: &[String]) {
    let mut list = List::new();
    for key in keys {
        list.push_text(key);
    }
    if !list.is_empty() {
        return read.push_array(name, list);
    }
    let mut none = List::new();
    none.push_null();
    none.push_array(list);
    let mut any = Builder::new();
    any.push_array("$in", none);
    read.push_document(name.as_bytes(), &any.build());
}

/// Returns a document whose only field, `name`, contains `document`.
fn within(name: &str, document: &RawDocumentBuf) -> RawDocumentBuf {
    let mut outer = Builder::new();
    outer.push_document(name.as_bytes(), document);
    outer.build()
}

#[cfg(test)]
mod tests {
    use mongodb::{
        Namespace,
        bson::{Bson, Document, Uuid, doc},
    };

    use super::*;
    use crate::{
        encoding::codec,
        mongo::statement::Operators,
        stored::entry::{Slot, read_outbox},
    };

    fn entry(further: Document) -> Entry {
        let mut entry = doc! { "id": Uuid::new(), "type": "order.placed" };
        entry.extend(further);
        match read_outbox(Some(&Bson::from(vec![entry]))).unwrap().remove(0) {
            Slot::Entry(entry) => *entry,
            Slot::Unreadable(unreadable) => panic!("{unreadable:?}"),
        }
    }

    #[test]
    fn a_claim_matches_every_entry_as_it_was_read() {
        let at = DateTime::from_millis(10);
        let fresh = entry(doc! {});
        let tried = entry(doc! {
            "available_at": at, "claimed_by": "p/1", "attempts": 2, "claims": 3, "delivered_to": ["a", "b"],
        });
        let (document, until) =
            (DocumentRef::by_id(Namespace::new("shop", "orders"), 1), DateTime::from_millis(20));
        let ids = [fresh.id, tried.id];
        let claim =
            Claim { document, token: "p/2".into(), until, counted: true, entries: vec![fresh, tried] };
        let update = claim.update();

        let (Filter::Bytes(filter), Operators::Bytes(operators)) = (&update.filter, &update.operators) else {
            panic!("{update:?}")
        };
        let zero = doc! { "$in": [Bson::Null, Bson::from(0)] };
        let fresh = doc! {
            "id": ids[0], "available_at": null, "claimed_by": null, "dead_at": null, "attempts": &zero, "claims": &zero,
            "delivered_to": { "$in": [Bson::Null, Bson::Array(Vec::new())] },
        };
        let tried = doc! {
            "id": ids[1], "available_at": at, "claimed_by": "p/1", "dead_at": null, "attempts": 2_i64, "claims": 3_i64,
            "delivered_to": ["a", "b"],
        };
        let all = doc! { "$all": [{ "$elemMatch": fresh }, { "$elemMatch": tried }] };
        assert_eq!(codec::to_document(filter).unwrap(), doc! { "_id": 1, "outbox": all });
        let set = doc! { "outbox.$[e].claimed_by": "p/2", "outbox.$[e].available_at": until };
        let more = doc! { "outbox.$[e].claims": 1 };
        assert_eq!(codec::to_document(operators).unwrap(), doc! { "$set": set, "$inc": more });
        let element = codec::to_document(&update.array_filters[0]).unwrap();
        assert_eq!(element, doc! { "e.id": { "$in": ids.to_vec() } });
    }
}

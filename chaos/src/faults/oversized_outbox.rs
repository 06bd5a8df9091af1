//! A fault in which another program writes a document that is so large that a claim can't be added to it.

use anyhow::Result;
use async_trait::async_trait;
use mongodb::{
    bson::{Binary, Bson, DateTime, Document, doc, spec::BinarySubtype},
    options::WriteConcern,
};
use tokio::time::sleep;
use uuid::Uuid;

use super::{Blow, Effect, Fault, Scope};
use crate::system::System;

/// The largest document that MongoDB accepts (`LARGEST`), and by how much the document of this fault is smaller (`ROOM`), both in
/// bytes.
const LARGEST: usize = 16 << 20;
const ROOM: usize = 20;
const MESSAGES: usize = 3;

pub(super) struct OversizedOutbox;

#[async_trait(?Send)]
impl Fault for OversizedOutbox {
    fn name(&self) -> &'static str {
        "oversized outbox"
    }

    fn scope(&self) -> Scope {
        Scope::Data
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let ids: Vec<_> = (0..MESSAGES).map(|_| Uuid::now_v7()).collect();
        let id = format!("oversized-{}", Uuid::new_v4().simple());
        let document = full_document(&id, &ids);
        let place = system.ledger.begin("harness", "ordered", &id, ids.clone());

        let documents = system.database().collection::<Document>("ordered");
        let written = documents.insert_one(document).write_concern(WriteConcern::majority()).await;
        system.ledger.end(place, if written.is_ok() { "applied" } else { "unknown" });
        sleep(blow.length).await;
        let came = ids.iter().filter(|id| system.ledger.has(**id)).count();
        let evidence = format!("written: {}, {came} of {MESSAGES} messages came meanwhile", written.is_ok());
        Ok(Effect::new("collection ordered", written.is_ok(), evidence))
    }
}

/// Returns a document with a few messages that is `ROOM` bytes smaller than the largest document that MongoDB accepts.
fn full_document(id: &str, ids: &[Uuid]) -> Document {
    let entries: Vec<_> = ids
        .iter()
        .map(|id| {
            doc! {
                "id": Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() },
                "type": "chaos.happened",
                "payload": { "of": "another program" },
                "available_at": DateTime::now(),
            }
        })
        .collect();
    let sent: Vec<_> = ids.iter().map(|id| Bson::String(id.to_string())).collect();
    let mut document = doc! { "_id": id, "sent": sent, "filler": "", "outbox": entries };
    let empty = mongodb::bson::to_vec(&document).map_or(0, |bytes| bytes.len());
    document.insert("filler", "x".repeat(LARGEST - ROOM - empty));
    document
}

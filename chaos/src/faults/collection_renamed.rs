//! A fault that renames a collection with all its documents and their outboxes.

use anyhow::Result;
use async_trait::async_trait;
use mongodb::bson::{Document, doc};

use super::{Blow, Effect, Fault, Scope, collection_dropped::MOVING};
use crate::system::System;

pub(super) struct CollectionRenamed;

#[async_trait(?Send)]
impl Fault for CollectionRenamed {
    fn name(&self) -> &'static str {
        "collection renamed"
    }

    fn scope(&self) -> Scope {
        Scope::Data
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let database = system.database();
        let documents = database.collection::<Document>(MOVING).estimated_document_count().await?;
        let from = format!("{}.{MOVING}", database.name());
        let to = format!("{}.moved_{}", database.name(), blow.seed % 10_000);
        let admin = system.servers.set.database("admin");
        let renamed = admin.run_command(doc! { "renameCollection": &from, "to": &to }).await;
        system.ensure_indexes(MOVING).await?;
        let is_done = renamed.is_ok() && documents > 0;
        Ok(Effect::new(
            format!("collection {MOVING}"),
            is_done,
            format!("with {documents} documents to {to}"),
        ))
    }
}

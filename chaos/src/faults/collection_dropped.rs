//! A fault that drops a collection with all its documents. Other collections must not be affected. The application
//! continues to save in the dropped collection.

use anyhow::Result;
use async_trait::async_trait;
use mongodb::bson::Document;

use super::{Blow, Effect, Fault, Scope};
use crate::system::System;

pub(super) const MOVING: &str = "moving";

pub(super) struct CollectionDropped;

#[async_trait(?Send)]
impl Fault for CollectionDropped {
    fn name(&self) -> &'static str {
        "collection dropped"
    }

    fn scope(&self) -> Scope {
        Scope::Data
    }

    async fn strike(&self, system: &System, _blow: Blow) -> Result<Effect> {
        let collection = system.database().collection::<Document>(MOVING);
        let documents = collection.estimated_document_count().await?;
        collection.drop().await?;
        // The drop is noted only after it is done. A save that began before this moment may have been executed before or after
        // the drop, and the ledger excuses its loss either way.
        system.ledger.drop_collection(MOVING);
        system.ensure_indexes(MOVING).await?;
        Ok(Effect::new(format!("collection {MOVING}"), documents > 0, format!("with {documents} documents")))
    }
}

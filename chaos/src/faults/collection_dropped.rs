//! A collection is dropped with all that is in it, while others have to continue. Its application makes it again.

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
        // A save that was begun before and arrives later than the drop is excused too.
        system.ledger.drop_collection(MOVING);
        system.ensure_indexes(MOVING).await?;
        Ok(Effect::new(format!("collection {MOVING}"), documents > 0, format!("with {documents} documents")))
    }
}

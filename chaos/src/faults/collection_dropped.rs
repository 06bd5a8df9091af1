//! A fault that drops a collection with all its documents. Other collections must not be affected. The application
//! continues to save in the dropped collection.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use mongodb::bson::Document;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::System;

pub(super) const MOVING: &str = "moving";
/// How many times a drop without a clear answer is repeated, and the pause before each repeat.
const REPEATS: usize = 10;
const PAUSE: Duration = Duration::from_millis(500);

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
        // A drop without a clear answer may have been executed, for example during a stepdown. A repeated drop is harmless.
        let mut dropped = collection.drop().await;
        for _ in 0..REPEATS {
            if dropped.is_ok() {
                break;
            }
            sleep(PAUSE).await;
            dropped = collection.drop().await;
        }

        // The drop is noted only after it is done, or may be done. A save that began before this moment may have been executed before or after
        // the drop, and the ledger excuses its loss either way.
        system.ledger.drop_collection(MOVING);
        dropped?;
        system.ensure_indexes(MOVING).await?;
        Ok(Effect::new(format!("collection {MOVING}"), documents > 0, format!("with {documents} documents")))
    }
}

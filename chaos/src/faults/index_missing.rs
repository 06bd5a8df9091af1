//! A fault that drops the index which the sweep uses, and later creates the index again.

use anyhow::Result;
use async_trait::async_trait;
use mongodb::bson::Document;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::System;

const COLLECTIONS: [&str; 4] = ["ordered", "deferred", "unordered", "dead_blocks"];

pub(super) struct IndexMissing;

#[async_trait(?Send)]
impl Fault for IndexMissing {
    fn name(&self) -> &'static str {
        "index missing"
    }

    fn scope(&self) -> Scope {
        Scope::Data
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let name = COLLECTIONS[blow.random().usize(0..COLLECTIONS.len())];
        let collection = system.database().collection::<Document>(name);
        collection.drop_indexes().await?;
        let left = collection.list_index_names().await?;
        sleep(blow.length).await;
        system.ensure_indexes(name).await?;
        Ok(Effect::new(format!("collection {name}"), left.len() == 1, format!("left were {left:?}")))
    }
}

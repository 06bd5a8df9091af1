//! A fault that makes the primary step down, so that another member is elected.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use mongodb::bson::doc;

use super::{Blow, Effect, Fault, Scope};
use crate::system::{Participant, System};

pub(super) struct Stepdown;

#[async_trait(?Send)]
impl Fault for Stepdown {
    fn name(&self) -> &'static str {
        "primary steps down"
    }

    fn scope(&self) -> Scope {
        Scope::Mongo
    }

    async fn strike(&self, system: &System, _blow: Blow) -> Result<Effect> {
        let set = &system.servers.set;
        let old = set.wait_for_primary().await?;
        // The primary may close the connection instead of answering, so the result is ignored.
        let _ = set.on(old, doc! { "replSetStepDown": 20, "force": true }).await;
        let mut new = None;
        let is_new = Participant::wait_until(Duration::from_secs(15), async || {
            new = set.primary().await;
            new.is_some_and(|new| new != old)
        })
        .await;
        Ok(Effect::new("mongodb", is_new, format!("member {old}, then {new:?}")))
    }
}

//! A fault that sends SIGKILL to the primary, and starts the killed member again after a while. The member then rolls back the
//! writes that no other member had received.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::{
    process::kill_server,
    system::{Participant, System},
};

pub(super) struct PrimaryKilled;

#[async_trait(?Send)]
impl Fault for PrimaryKilled {
    fn name(&self) -> &'static str {
        "primary killed"
    }

    fn scope(&self) -> Scope {
        Scope::Mongo
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let set = &system.servers.set;
        let old = set.wait_for_primary().await?;
        let was_hit = set.pid(old).is_some_and(kill_server);
        let mut new = None;
        let is_new = Participant::wait_until(Duration::from_secs(15), async || {
            new = set.primary().await;
            new.is_some_and(|new| new != old)
        })
        .await;
        sleep(blow.length / 2).await;
        set.start(old).await.context("the killed primary")?;
        Ok(Effect::new("mongodb", was_hit && is_new, format!("member {old}, then {new:?}")))
    }
}

//! A fault that delays all data between one process and its servers.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope, any};
use crate::{proxy::Link, system::System};

pub(super) struct SlowLink;

#[async_trait(?Send)]
impl Fault for SlowLink {
    fn name(&self) -> &'static str {
        "slow link of one process"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let mut random = blow.random();
        let participant = any(system, &mut random);
        let late = Duration::from_millis(random.u64(20..600));

        let before: u64 = participant.links().map(Link::hindered).sum();
        for link in participant.links() {
            link.slow(late);
        }
        sleep(blow.length).await;
        for link in participant.links() {
            link.heal();
        }
        let hindered: u64 = participant.links().map(Link::hindered).sum::<u64>() - before;
        Ok(Effect::new(participant.name(), hindered > 0, format!("{hindered} chunks late by {late:?}")))
    }
}

//! A fault that stops one process with SIGSTOP and continues it with SIGCONT. The claims and leases of the process may expire
//! during the pause.

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope, any};
use crate::system::System;

pub(super) struct Pause;

#[async_trait(?Send)]
impl Fault for Pause {
    fn name(&self) -> &'static str {
        "SIGSTOP and SIGCONT"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let participant = any(system, &mut blow.random());
        let was_hit = participant.process.pause();
        sleep(blow.length).await;
        let is_paused = participant.process.is_paused();
        participant.process.wake();
        Ok(Effect::new(participant.name(), was_hit && is_paused, format!("paused for {:.1?}", blow.length)))
    }
}

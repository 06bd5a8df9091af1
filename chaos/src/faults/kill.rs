//! A fault that sends SIGKILL to one process at a random time.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;

use super::{Blow, Effect, Fault, Scope, any};
use crate::system::{Participant, System};

pub(super) struct Kill;

#[async_trait(?Send)]
impl Fault for Kill {
    fn name(&self) -> &'static str {
        "SIGKILL at random"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let participant = any(system, &mut blow.random());
        let starts = participant.process.starts();
        let was_hit = participant.process.kill();

        // The fault ends when the process is running again.
        let is_back =
            Participant::wait_until(Duration::from_secs(5), async || participant.process.starts() > starts)
                .await;
        Ok(Effect::new(participant.name(), was_hit && is_back, "it was started again"))
    }
}

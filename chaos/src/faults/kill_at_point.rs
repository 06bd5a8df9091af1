//! A fault that sends SIGKILL to one process at a named point: right before or right after a frame of a certain kind passes the
//! process's link.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;

use super::{Blow, Effect, Fault, Scope, any};
use crate::{
    proxy::Moment,
    system::{Participant, System},
};

/// A process that does not reach the point within this time is not killed.
const PATIENCE: Duration = Duration::from_secs(6);

pub(super) struct KillAtPoint;

#[async_trait(?Send)]
impl Fault for KillAtPoint {
    fn name(&self) -> &'static str {
        "SIGKILL at a named point"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let mut random = blow.random();
        let participant = any(system, &mut random);
        let point = participant.points[random.usize(0..participant.points.len())];
        let moment = if random.bool() { Moment::Before } else { Moment::After };

        let starts = participant.process.starts();
        for link in participant.links() {
            link.kill_at(point, moment);
        }
        let came_by =
            Participant::wait_until(PATIENCE, async || participant.links().any(|link| !link.is_deadly()))
                .await;
        for link in participant.links() {
            link.heal();
        }
        let is_back = came_by
            && Participant::wait_until(PATIENCE, async || participant.process.starts() > starts).await;
        Ok(Effect::new(participant.name(), is_back, format!("{moment:?} {point:?}")))
    }
}

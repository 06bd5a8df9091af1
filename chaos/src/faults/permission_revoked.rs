//! A fault that forbids the RabbitMQ user of one process to write to the exchange of messages, and later grants the permission
//! again.

use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::{
    actors::Role,
    system::{Participant, System},
};

/// How long it may take until the process tries to publish a message.
const PATIENCE: Duration = Duration::from_secs(6);

pub(super) struct PermissionRevoked;

#[async_trait(?Send)]
impl Fault for PermissionRevoked {
    fn name(&self) -> &'static str {
        "permission revoked and granted"
    }

    fn scope(&self) -> Scope {
        Scope::Broker
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let participants: Vec<_> =
            system.participants.iter().filter(|participant| participant.role != Role::Rescuer).collect();
        let participant = participants[blow.random().usize(0..participants.len())];
        let begun = Instant::now();

        system.servers.cluster.permit(participant.name(), ".*[.](commands|process)").await?;
        // An open channel keeps the permissions that it had when it was opened, so the connection is cut.
        participant.rabbitmq.cut();
        let is_refused = async || system.traffic.closings(begun, Some(participant.name()), &[403]) > 0;
        Participant::wait_until(PATIENCE, is_refused).await;
        sleep(blow.length / 2).await;
        system.servers.cluster.permit(participant.name(), ".*").await?;
        participant.rabbitmq.cut();
        let refused = system.traffic.closings(begun, Some(participant.name()), &[403]);
        Ok(Effect::new(participant.name(), refused > 0, format!("{refused} channels closed with 403")))
    }
}

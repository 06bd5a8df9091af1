//! A fault that makes RabbitMQ refuse all messages longer than `LIMIT` for a while.

use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::{Participant, System};

/// How long it may take until a process sends a message that is longer than `LIMIT`.
const PATIENCE: Duration = Duration::from_secs(6);
/// The length in bytes of the longest message that RabbitMQ accepts during the fault. Most messages are shorter, and some are
/// longer.
const LIMIT: u64 = 1_000;

pub(super) struct LimitLowered;

#[async_trait(?Send)]
impl Fault for LimitLowered {
    fn name(&self) -> &'static str {
        "broker limit lowered"
    }

    fn scope(&self) -> Scope {
        Scope::Broker
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let begun = Instant::now();
        system.servers.cluster.limit_messages(Some(LIMIT)).await?;
        reconnect(system);
        let is_refused = async || system.traffic.closings(begun, None, &[406]) > 0;
        Participant::wait_until(PATIENCE, is_refused).await;
        sleep(blow.length / 2).await;
        system.servers.cluster.limit_messages(None).await?;
        reconnect(system);
        let refused = system.traffic.closings(begun, None, &[406]);
        Ok(Effect::new("rabbitmq", refused > 0, format!("{refused} channels closed with 406")))
    }
}

/// Cuts all connections to RabbitMQ, because an open channel does not learn of a new limit.
fn reconnect(system: &System) {
    for participant in &system.participants {
        participant.rabbitmq.cut();
    }
}

//! A fault that raises the memory alarm of a RabbitMQ node, so that no node of the cluster accepts a message from a publisher.

use std::time::Instant;

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::System;

pub(super) struct MemoryAlarm;

#[async_trait(?Send)]
impl Fault for MemoryAlarm {
    fn name(&self) -> &'static str {
        "memory alarm"
    }

    fn scope(&self) -> Scope {
        Scope::Broker
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let node = blow.random().usize(0..3);
        let begun = Instant::now();
        system.servers.cluster.alarm(node, true).await?;
        sleep(blow.length).await;
        system.servers.cluster.alarm(node, false).await?;
        let blocked = system.traffic.blocked(begun);
        Ok(Effect::new("rabbitmq", blocked > 0, format!("{blocked} connections were notified")))
    }
}

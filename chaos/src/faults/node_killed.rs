//! A fault that sends SIGKILL to the RabbitMQ node that leads a queue, and starts the node again.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::{Participant, System};

/// How long the other nodes may take to elect another leader.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct NodeKilled;

#[async_trait(?Send)]
impl Fault for NodeKilled {
    fn name(&self) -> &'static str {
        "RabbitMQ leader killed and restarted"
    }

    fn scope(&self) -> Scope {
        Scope::Broker
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let cluster = &system.servers.cluster;
        let queue = if blow.random().bool() {
            system.receiver.queue.clone()
        } else {
            system.placement.commands_queue()
        };
        // A node is killed only when all three run and each has a copy of the queue. A queue has copies only on nodes that were
        // running when the queue was made, and a queue works only while a majority of its copies is on running nodes.
        if !system.began_whole || !cluster.is_whole().await {
            return Ok(Effect::new("rabbitmq", false, "a node is still on its way back"));
        }

        let leader = cluster.leader(&queue).await.context("the queue has no leader")?;
        let was_hit = cluster.kill(leader).await;
        let mut another = None;
        let is_led = Participant::wait_until(PATIENCE, async || {
            another = cluster.leader(&queue).await.filter(|another| *another != leader);
            another.is_some()
        })
        .await;
        sleep(blow.length / 2).await;
        // The node takes a while to boot. The storm continues during that time.
        cluster.begin_start(leader)?;
        let name = cluster.name(leader);
        Ok(Effect::new("rabbitmq", was_hit && is_led, format!("{name} led {queue}, then node {another:?}")))
    }
}

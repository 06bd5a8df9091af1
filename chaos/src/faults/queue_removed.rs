//! A fault that deletes a queue: either the queue of commands with the commands in it, or the receiver's queue once it is empty.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::{Participant, System};

pub(super) struct QueueRemoved;

#[async_trait(?Send)]
impl Fault for QueueRemoved {
    fn name(&self) -> &'static str {
        "queue removed"
    }

    fn scope(&self) -> Scope {
        Scope::Broker
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let receiver = &system.receiver;
        if blow.random().bool() {
            // The harness does not make the queue of commands again, because the processes that use the queue do.
            let queue = system.placement.commands_queue();
            receiver.delete(&queue).await?;
            let is_gone = system.servers.cluster.leader(&queue).await.is_none();
            sleep(blow.length).await;
            return Ok(Effect::new(
                "rabbitmq",
                true,
                format!("the queue of commands; gone at once: {is_gone}"),
            ));
        }

        // The receiver's queue is deleted only once it is empty: its messages count as delivered, and the product could not
        // prevent their loss.
        receiver.unbind().await?;
        let is_empty =
            Participant::wait_until(Duration::from_secs(5), async || receiver.backlog().await == Some(0))
                .await;
        let removed = if is_empty {
            // During this pause, messages that were routed before the binding was removed can still arrive and be acknowledged.
            sleep(Duration::from_secs(2)).await;
            receiver.backlog().await == Some(0) && receiver.delete(&receiver.queue).await.is_ok()
        } else {
            false
        };
        sleep(blow.length).await;
        receiver.bind().await?;
        Ok(Effect::new("rabbitmq", removed, "the queue of messages"))
    }
}

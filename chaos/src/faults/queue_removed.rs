//! A queue is deleted: that of commands, with what is in it, or that of the receiver, once it is empty.

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
            // Made again by the processes themselves.
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

        // Messages in a receiver's queue were delivered: deleting them would be the operator's loss.
        receiver.unbind().await?;
        let is_empty =
            Participant::wait_until(Duration::from_secs(5), async || receiver.backlog().await == Some(0))
                .await;
        let removed = if is_empty {
            // Messages on their way when the binding was removed have arrived, and the consumer has acknowledged it.
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

//! A fault that removes the binding of the receiver's queue, so that no queue is bound for the messages.

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::System;

pub(super) struct BindingRemoved;

#[async_trait(?Send)]
impl Fault for BindingRemoved {
    fn name(&self) -> &'static str {
        "binding removed"
    }

    fn scope(&self) -> Scope {
        Scope::Broker
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let before = system.traffic.returned();
        system.receiver.unbind().await?;
        sleep(blow.length).await;
        system.receiver.bind().await?;
        let returned = system.traffic.returned() - before;
        Ok(Effect::new("rabbitmq", returned > 0, format!("{returned} messages were returned")))
    }
}

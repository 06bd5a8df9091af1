//! A fault that cuts connections of one process in the middle of a frame.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;

use super::{Blow, Effect, Fault, Scope, any};
use crate::system::{Participant, System};

pub(super) struct CutMidFrame;

#[async_trait(?Send)]
impl Fault for CutMidFrame {
    fn name(&self) -> &'static str {
        "cut in the middle of a frame"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let mut random = blow.random();
        let participant = any(system, &mut random);
        let place = random.usize(0..participant.mongodb.len() + 2);
        // The link to RabbitMQ is chosen more often than the link to any one MongoDB member, because a process sends most of its
        // data to RabbitMQ and to the primary.
        let link = participant.mongodb.get(place).unwrap_or(&participant.rabbitmq);

        link.cut_mid_frame();
        let was_cut = Participant::wait_until(Duration::from_secs(3), async || !link.is_about_to_cut()).await;
        link.heal();
        Ok(Effect::new(participant.name(), was_cut, format!("on its link {place}")))
    }
}

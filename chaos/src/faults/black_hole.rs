//! A fault that holds all data between one process and its servers, without an error for either side. When the fault ends, the
//! links either pass the held data on, or lose it by cutting the connections.

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope, any};
use crate::{proxy::Link, system::System};

pub(super) struct BlackHole;

#[async_trait(?Send)]
impl Fault for BlackHole {
    fn name(&self) -> &'static str {
        "black-holed link of one process"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let mut random = blow.random();
        let participant = any(system, &mut random);
        let (to, links): (_, Vec<&Link>) = match random.u8(0..3) {
            0 => ("MongoDB", participant.mongodb.iter().collect()),
            1 => ("RabbitMQ", vec![&participant.rabbitmq]),
            _ => ("both", participant.links().collect()),
        };

        let before: u64 = links.iter().map(|link| link.hindered()).sum();
        for link in &links {
            link.black_hole();
        }
        sleep(blow.length).await;
        let held: u64 = links.iter().map(|link| link.hindered()).sum::<u64>() - before;
        let is_cut = random.bool();
        for link in &links {
            if is_cut {
                link.cut();
            }
            link.heal();
        }
        Ok(Effect::new(
            participant.name(),
            held > 0,
            format!("{to}, {held} chunks held, cut afterwards: {is_cut}"),
        ))
    }
}

//! A fault that makes RabbitMQ close channels of one process, as RabbitMQ also does after any request that it cannot fulfil.

use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;

use super::{Blow, Effect, Fault, Scope, any};
use crate::system::{Participant, System};

pub(super) struct ChannelClosed;

#[async_trait(?Send)]
impl Fault for ChannelClosed {
    fn name(&self) -> &'static str {
        "channel closed"
    }

    fn scope(&self) -> Scope {
        Scope::Broker
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let participant = any(system, &mut blow.random());
        let begun = Instant::now();
        // The expression makes each channel of this user request a queue that does not exist.
        for node in 0..3 {
            let name = system.servers.cluster.name(node);
            let ask = format!(
                "[rpc:call('{name}', rabbit_channel, do, [Pid, {{'queue.declare', 0, <<\"absent\">>, true, false, \
                 false, false, false, []}}], 3000) || Pid <- case rpc:call('{name}', rabbit_channel, list_local, [], \
                 3000) of Pids when is_list(Pids) -> Pids; _ -> [] end, case rpc:call('{name}', rabbit_channel, info, \
                 [Pid, [user]], 3000) of [{{user, <<\"{}\">>}}] -> true; _ -> false end]",
                participant.name()
            );
            let _ = system.servers.cluster.evaluate(&ask).await;
        }
        let closed = async || system.traffic.closings(begun, Some(participant.name()), &[404]) > 0;
        let took = Participant::wait_until(Duration::from_secs(2), closed).await;
        let count = system.traffic.closings(begun, Some(participant.name()), &[404]);
        Ok(Effect::new(participant.name(), took, format!("{count} channels closed with 404")))
    }
}

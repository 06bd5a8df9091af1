//! A fault that sends commands which no rescuer would send: some are malformed or far too long; others name a collection that is
//! not watched, a document that does not exist, or another cluster.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use lapin::{BasicProperties, options::BasicPublishOptions};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{Blow, Effect, Fault, Scope};
use crate::{actors::Role, system::System};

const FORGED: usize = 100;

pub(super) struct ForgedCommands;

#[async_trait(?Send)]
impl Fault for ForgedCommands {
    fn name(&self) -> &'static str {
        "forged commands"
    }

    fn scope(&self) -> Scope {
        Scope::Broker
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let mut random = blow.random();
        let before = refused(system).await;
        let connection = system.servers.cluster.connect().await?;
        let channel = connection.create_channel().await?;
        for _ in 0..FORGED {
            let body = forge(&system.placement.database, &mut random);
            let published = channel.basic_publish(
                system.placement.commands_exchange().into(),
                "process-document-messages".into(),
                BasicPublishOptions::default(),
                &body,
                BasicProperties::default().with_type("ProcessDocumentMessages".into()),
            );
            timeout(Duration::from_secs(5), published).await??;
        }
        let _ = timeout(Duration::from_secs(1), connection.close(200, "OK".into())).await;
        sleep(blow.length).await;
        let refused = refused(system).await - before;
        Ok(Effect::new("rabbitmq", refused > 0.0, format!("{FORGED} sent, {refused} refused meanwhile")))
    }
}

async fn refused(system: &System) -> f64 {
    let mut refused = 0.0;
    for participant in system.of_role(Role::Dispatcher) {
        refused += participant.series("outbox_commands_refused_total").await;
    }
    refused
}

fn forge(database: &str, random: &mut fastrand::Rng) -> Vec<u8> {
    let key = json!({ "_id": format!("no-such-document-{}", random.u32(..)) });
    let command = |database: &str, collection: &str| json!({ "database": database, "collection": collection, "document_key": key, "reason": "sweep" });
    match random.u8(0..6) {
        0 => b"{ not json".to_vec(),
        1 => command("elsewhere", "orders").to_string().into_bytes(),
        2 => command(database, "ordered").to_string().into_bytes(),
        3 => vec![b'x'; 200_000],
        4 => {
            let mut foreign = command(database, "ordered");
            foreign["cluster"] = json!(uuid::Uuid::new_v4().to_string());
            foreign.to_string().into_bytes()
        }
        _ => (0..random.usize(1..200)).map(|_| random.u8(..)).collect(),
    }
}

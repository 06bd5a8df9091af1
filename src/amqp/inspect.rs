//! Reads the length of a queue, without declaring or consuming anything.

use lapin::{options::QueueDeclareOptions, types::FieldTable};

use crate::amqp::{
    connection::{Plan, close},
    settings::AmqpSettings,
    topology::Topology,
    trouble::{Trouble, broker_said, code_of, short},
};

/// The state of a queue at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerQueue {
    /// The queue exists.
    Exists {
        /// Number of messages that are ready for a consumer.
        ready: u32,
        /// Number of consumers.
        consumers: u32,
    },
    /// There is no such queue.
    Missing,
}

/// Asks the broker for the state of a queue, by a passive declaration on a connection of its own.
///
/// # Errors
/// A sentence for people, if the broker can't be reached or refuses the question.
pub async fn queue_state(settings: &AmqpSettings, queue: &str) -> Result<BrokerQueue, String> {
    let plan = Plan { settings: settings.clone(), topology: Topology::default(), role: "inspector" };
    let connection = plan.connect().await.map_err(|trouble| trouble.to_string())?;

    let answer = ask(&plan, &connection, queue).await;
    close(&connection).await;
    answer.map_err(|trouble| trouble.to_string())
}

async fn ask(plan: &Plan, connection: &lapin::Connection, queue: &str) -> Result<BrokerQueue, Trouble> {
    let channel = plan.channel(connection).await?;
    let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };

    let declared = channel.queue_declare(short(queue)?, passive, FieldTable::default());
    match plan.in_time(async { Ok(declared.await) }).await? {
        Ok(found) => {
            Ok(BrokerQueue::Exists { ready: found.message_count(), consumers: found.consumer_count() })
        }
        Err(error) if code_of(&error) == Some(404) => Ok(BrokerQueue::Missing),
        Err(error) => {
            let reason = broker_said(&error);
            Err(Trouble::Misconfigured(format!("the state of queue {queue:?} is refused ({reason})")))
        }
    }
}

//! The binary `outbox-dispatcher`: runs the dispatcher as a process that publishes to RabbitMQ.

mod read;
mod table;

use std::{error::Error, sync::Arc};

use document_outbox::{amqp::State, deliver::RabbitMq, dispatch::Processor};
use outbox_service::{Context, Daemon, Exit, Report, keys};
use tokio::sync::watch;

use crate::{dispatcher::Dispatcher, status::Status};
use read::{NAME, Settings, read};
use table::table;

const ABOUT: &str = "Consumes commands and publishes the messages in documents' outboxes to RabbitMQ, for \
    any collection, without knowing the types. Skips messages that are meant for an application's own handlers.";

/// Runs the process with its arguments, its environment and its settings file, until a signal ends it.
#[must_use]
pub fn main() -> Exit {
    Daemon::new(NAME, env!("CARGO_PKG_VERSION"), ABOUT).keys(keys::transport()).keys(table()).run(read, serve)
}

async fn serve(settings: Settings, context: Context) -> Result<(), Box<dyn Error + Send + Sync>> {
    let rabbitmq = settings.rabbitmq.ok_or("the RabbitMQ URI was accepted without being read")?;
    let amqp = rabbitmq.amqp.clone();

    let client = settings.connections.mongodb().await?;
    let deliver = RabbitMq::start(rabbitmq);
    let processor = Processor::new(client, Arc::new(deliver.clone()), settings.processor);
    let mut worker = Dispatcher::new(processor, amqp, settings.dispatcher)?.start();
    context.probes.report(WorkerReport(worker.status()));

    // If one of these tasks ends, the process ends too, because it would otherwise run without doing anything.
    let ended: Result<(), Box<dyn Error + Send + Sync>> = tokio::select! {
        () = context.stop.cancelled() => Ok(()),
        ended = worker.ended() => Err(ended.into()),
        () = closed(deliver.subscribe()) => Err("the task that publishes messages has ended".into()),
    };

    worker.stop().await;
    deliver.close().await;
    ended
}

/// Waits until the supervisor of a connection has ended.
async fn closed(mut states: watch::Receiver<State>) {
    // An error also means that the supervisor has ended.
    let _ = states.wait_for(|state| *state == State::Closed).await;
}

/// Reports the worker's status through the probes of the process.
struct WorkerReport(Status);

impl Report for WorkerReport {
    fn not_ready(&self) -> Vec<String> {
        self.0.snapshot().not_ready
    }

    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.0.snapshot()).unwrap_or_default()
    }
}

//! An application of a storm: a process that saves documents with messages. It prints a line of JSON before each save and another
//! line with the outcome. The ledger learns of these saves only from the lines, not from the stored documents.

mod documents;
mod hasty;
mod job;
mod savers;

use std::time::Duration;

use anyhow::Result;
use document_outbox::{
    CommandSender, InlineDispatcher, RetryPolicy,
    amqp::{AmqpSettings, Publisher, TopologyMode},
    deliver::{RabbitMq, RabbitMqSettings},
};
use mongodb::{Client, options::ClientOptions};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal::unix::{SignalKind, signal},
};

pub(crate) use self::job::{Job, Line, Order};
use self::{hasty::Hasty, savers::Savers};
use crate::settings;

/// Runs the application until the process gets SIGTERM.
pub(crate) async fn run(job: Job) -> Result<()> {
    let mut options = ClientOptions::parse(&job.mongodb).await?;
    options.server_selection_timeout = Some(Duration::from_secs(5));
    options.connect_timeout = Some(Duration::from_secs(3));
    let client = Client::with_options(options)?;

    let mut amqp = AmqpSettings::new(&job.rabbitmq)?.named(&job.name);
    amqp.confirm_timeout = settings::CONFIRM_TIMEOUT;
    amqp.connect_timeout = Duration::from_secs(3);
    amqp.reconnect_max = Duration::from_secs(1);
    let mut broker = RabbitMqSettings::new(&job.rabbitmq)?;
    broker.amqp = amqp.clone();
    broker.exchange.clone_from(&job.messages_exchange);
    let messages = RabbitMq::start(broker);

    let topology =
        CommandSender::topology(&job.commands_exchange, &job.commands_queue, TopologyMode::Declare);
    let commands = CommandSender::new(Publisher::start(amqp, topology), &job.commands_exchange);
    let mut retry = RetryPolicy::default();
    retry.max_attempts = settings::MAX_ATTEMPTS;
    retry.backoff_min = settings::BACKOFF_MIN;
    retry.backoff_max = settings::BACKOFF_MAX;
    let mut builder = InlineDispatcher::builder(&client)
        .name(&job.name)
        .state_database(&job.state_database)
        .inline_lease(settings::INLINE_LEASE)
        .retry(retry)
        .hand_off(commands);
    if job.defers_clears {
        builder = builder.defer_clears(settings::DEFERRED_CLEARS);
    }
    let inline = if job.clears_before_confirm {
        builder.deliver_to(Hasty(messages.clone()))
    } else {
        builder.deliver_to(messages.clone())
    };

    let mut savers = Savers::start(&client, &inline, &job);
    obey(&mut savers).await?;
    savers.quiet();
    inline.close(Duration::from_secs(5)).await;
    messages.close().await;
    Ok(())
}

/// Executes the orders that arrive on standard input, until the process gets SIGTERM.
async fn obey(savers: &mut Savers) -> Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut date = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = end.recv() => return Ok(()),
            _ = date.tick() => Line::Date { millis: mongodb::bson::DateTime::now().timestamp_millis() }.say(),
            order = orders.next_line() => match order? {
                Some(order) if order == "quiet" => savers.quiet(),
                Some(order) if order == "hot" => savers.hot(),
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

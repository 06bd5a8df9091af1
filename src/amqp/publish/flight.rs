//! Publishes one window of messages together and awaits every confirm.

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tokio::time::{Instant, timeout_at};

use crate::amqp::{
    publish::{
        backlog::Item,
        publication::Publication,
        window::{Confirm, Returned},
    },
    settings::AmqpSettings,
    trouble::{Cause, broker_said},
};

/// The answers for one window.
pub(super) struct WindowOutcome {
    pub(super) answers: Vec<Confirm>,
    pub(super) returns: Vec<Returned>,
    pub(super) failure: Option<Failure>,
}

/// Why messages of a window have no answer.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) cause: Cause,
}

impl Failure {
    pub(super) fn lost(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), cause: Cause::Lost }
    }

    fn of(error: &lapin::Error) -> Self {
        Self { reason: broker_said(error), cause: Cause::of(error) }
    }
}

impl WindowOutcome {
    fn new(messages: usize) -> Self {
        Self { answers: vec![Confirm::Missing; messages], returns: Vec::new(), failure: None }
    }

    pub(super) fn nothing(messages: usize, failure: Failure) -> Self {
        Self { failure: Some(failure), ..Self::new(messages) }
    }

    fn note(&mut self, index: usize, confirmed: Result<Confirmation, lapin::Error>) {
        match confirmed {
            Ok(confirmation) => {
                self.answers[index] = match confirmation {
                    Confirmation::Ack(_) => Confirm::Acked,
                    Confirmation::Nack(_) => Confirm::Nacked,
                    Confirmation::NotRequested => Confirm::Missing,
                };
                self.returns.extend(confirmation.take_message().map(|message| Returned {
                    message_id: message.properties.message_id().as_ref().map(ToString::to_string),
                    code: message.reply_code,
                    text: message.reply_text.to_string(),
                }));
            }
            Err(error) => {
                // Prefer the broker's error to the client's error "invalid state", and the channel's error to the
                // connection's error. If the client sent more on a closed channel, the broker ends the connection too,
                // so the channel's error is the cause.
                let failure = Failure::of(&error);
                let better = match &self.failure {
                    None => true,
                    Some(known) => failure.cause.explains_more_than(known.cause),
                };
                if better {
                    self.failure = Some(failure);
                }
            }
        }
    }
}

/// Publishes all messages at once and collects every confirm.
pub(super) async fn fly(channel: &Channel, items: &[Item], settings: &AmqpSettings) -> WindowOutcome {
    let (app_id, patience) = (settings.app_id(), settings.confirm_timeout);
    let mut outcome = WindowOutcome::new(items.len());
    let deadline = Instant::now() + patience;
    let mut flights = FuturesUnordered::new();

    for (index, item) in items.iter().enumerate() {
        let mut publishing = Box::pin(async move { send(channel, &item.publication, app_id).await?.await });
        // The first poll passes the message to the client, so polling here sends the messages in their order.
        match (&mut publishing).now_or_never() {
            Some(confirmed) => outcome.note(index, confirmed),
            None => flights.push(async move { (index, publishing.await) }),
        }
    }

    loop {
        match timeout_at(deadline, flights.next()).await {
            Ok(Some((index, confirmed))) => outcome.note(index, confirmed),
            Ok(None) => return outcome,
            Err(_) => {
                let reason = format!("{} messages were not confirmed within {patience:?}", flights.len());
                outcome.failure.get_or_insert(Failure::lost(reason));
                return outcome;
            }
        }
    }
}

async fn send(
    channel: &Channel,
    publication: &Publication,
    app_id: &str,
) -> lapin::Result<lapin::PublisherConfirm> {
    let (exchange, key) = (publication.exchange.as_str().into(), publication.routing_key.as_str().into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish(exchange, key, options, &publication.body, properties(publication, app_id)).await
}

/// [`Publication::flaw`] has already checked the length of every string, because the client panics on long strings.
fn properties(publication: &Publication, app_id: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &publication.headers {
        headers.insert(
            ShortString::from(name.as_str()),
            AMQPValue::LongString(LongString::from(value.as_str())),
        );
    }

    let mut properties = BasicProperties::default()
        .with_content_type(publication.content_type.as_str().into())
        .with_message_id(publication.message_id.as_str().into())
        .with_app_id(app_id.into())
        .with_headers(headers)
        .with_delivery_mode(2);
    if let Some(message_type) = &publication.message_type {
        properties = properties.with_type(message_type.as_str().into());
    }
    if let Some(timestamp) = publication.timestamp {
        properties = properties.with_timestamp(timestamp);
    }
    if let Some(expiration) = publication.expiration {
        // RabbitMQ expects milliseconds as text; AMQP leaves the format to the broker.
        properties = properties.with_expiration(expiration.as_millis().to_string().into());
    }
    properties
}

//! Receives messages inside the process that delivers them, without a broker.

use std::sync::Arc;

use futures::FutureExt;

use crate::{
    InboxLimits,
    aggregate::message::SCHEMA_HEADER,
    deliver::{Envelope, HandlerKey, HandlersBuilder, HandlersError},
    receive::{handled::Handled, message::ReceivedMessage, subscriptions::Subscriptions},
};

impl HandlersBuilder {
    /// Adds the functions that a [`Receiver`](crate::receive::Receiver) would call for the messages of a queue. They get
    /// the messages of this process instead, without a broker. `key` is stored in documents, and takes the place of the
    /// queue's name: if a type has functions in several sets of subscriptions, each set fails and is tried again by itself.
    ///
    /// ```
    /// # use document_outbox::{Aggregate, Inbox, InlineDispatcher, Message, Outbox, Store};
    /// # use document_outbox::{deliver::Handlers, receive::Subscriptions};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, Message)]
    /// # #[message(type = "stock.requested")]
    /// # struct StockRequested { sku: String, quantity: i64 }
    /// # #[derive(Serialize, Deserialize, Aggregate)]
    /// # struct Stock {
    /// #     #[serde(rename = "_id")] sku: String, available: i64,
    /// #     #[serde(default)] inbox: Inbox, #[serde(skip)] outbox: Outbox,
    /// # }
    /// # impl Stock {
    /// #     fn new(sku: String) -> Self { Self { sku, available: 0, inbox: Inbox::default(), outbox: Outbox::default() } }
    /// #     fn take(&mut self, request: &StockRequested) { self.available -= request.quantity; }
    /// # }
    /// # fn example(stocks: &Store<Stock>) -> Result<Handlers, document_outbox::deliver::HandlersError> {
    /// let key = |request: &StockRequested| request.sku.clone();
    /// let requests = Subscriptions::new().into_aggregate(stocks, key, Stock::new, Stock::take);
    /// Handlers::builder().subscriptions("stock", requests).build()
    /// # }
    /// ```
    ///
    /// A message counts as delivered after the function has returned, or after the majority of MongoDB has the aggregate's
    /// save. After a conflict the message is applied to the newly loaded aggregate. The inboxes of aggregates have the
    /// default limits; [`subscriptions_within`](Self::subscriptions_within) sets others.
    #[must_use]
    pub fn subscriptions(self, key: impl Into<HandlerKey>, subscriptions: Subscriptions) -> Self {
        self.subscriptions_within(InboxLimits::default(), key, subscriptions)
    }

    /// Like [`subscriptions`](Self::subscriptions), with these limits for the inboxes of aggregates. An inbox must remember
    /// a message for longer than the message is tried.
    #[must_use]
    pub fn subscriptions_within(
        self,
        limits: InboxLimits,
        key: impl Into<HandlerKey>,
        subscriptions: Subscriptions,
    ) -> Self {
        let key = key.into();
        let problems = subscriptions.problems();
        let Some(first) = subscriptions.types().first().copied().filter(|_| problems.is_empty()) else {
            return self.refuse(HandlersError::Subscriptions {
                key: key.current().to_owned(),
                problems: problems.join("; "),
            });
        };

        let named = subscriptions.clone();
        let is_named = move |message_type: &str| named.find(message_type).is_some();
        self.push(key, first, is_named, move |envelope| {
            let received = Arc::new(ReceivedMessage::of(&envelope));
            match subscriptions.find(&received.message_type) {
                Some(subscription) => subscription.call(received, limits).map(Handled::into_result).boxed(),
                // The handlers call this function only for types that it has named.
                None => std::future::ready(Ok(())).boxed(),
            }
        })
    }
}

impl ReceivedMessage {
    /// A message that is delivered inside this process, as a receiver would get it from a queue.
    fn of(envelope: &Envelope) -> Self {
        let mut headers = envelope.headers.clone();
        headers.remove(SCHEMA_HEADER);
        Self {
            id: Some(envelope.id),
            message_type: envelope.message_type.clone(),
            source: Some(envelope.document.source()),
            subject: Some(envelope.document.subject()).filter(|subject| !subject.is_empty()),
            partition_key: None,
            time: envelope.created_at,
            headers,
            exchange: String::new(),
            routing_key: envelope.message_type.clone(),
            redelivered: envelope.attempts > 0,
            delays: 0,
            content_type: None,
            body: Vec::new(),
            payload: Some(envelope.payload.clone()),
        }
    }
}

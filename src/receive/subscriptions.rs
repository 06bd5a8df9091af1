//! The functions that receive messages, each for one type. A receiver calls them with the messages of a queue, and the
//! handlers of a process call them with its own messages.

use std::{fmt, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use serde::de::DeserializeOwned;

use crate::{
    InboxLimits, Message, ReceivingAggregate, Store,
    deliver::HandlerError,
    receive::{
        aggregate::{self, Applies, IntoAggregate},
        handled::Handled,
        message::ReceivedMessage,
    },
};

type FunctionCall = dyn Fn(Arc<ReceivedMessage>, InboxLimits) -> BoxFuture<'static, Handled> + Send + Sync;

/// One function, and the type of the messages that it receives.
#[derive(Clone)]
pub(super) struct TypeSubscription {
    types: Vec<&'static str>,
    is_named: fn(&str) -> bool,
    call: Arc<FunctionCall>,
}

impl TypeSubscription {
    fn new<M: Message>(
        call: impl Fn(Arc<ReceivedMessage>, InboxLimits) -> BoxFuture<'static, Handled> + Send + Sync + 'static,
    ) -> Self {
        let types = M::TYPES.iter().chain(M::ALIASES).copied().collect();
        Self { types, is_named: M::is_named, call: Arc::new(call) }
    }

    /// Calls the function.
    pub(super) fn call(
        &self,
        message: Arc<ReceivedMessage>,
        inbox: InboxLimits,
    ) -> BoxFuture<'static, Handled> {
        (self.call)(message, inbox)
    }
}

/// The functions that receive messages. Each type has one function. For several effects that may fail independently, use a
/// separate queue for each.
///
/// The functions can receive the messages of a queue ([`Receiver`](super::Receiver)), or messages that are delivered inside
/// the process ([`HandlersBuilder::subscriptions`](crate::deliver::HandlersBuilder::subscriptions)).
///
/// ```
/// # use document_outbox::{Aggregate, Inbox, Message, Outbox, Store, receive::Subscriptions};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, Message)]
/// # #[message(type = "order.paid")]
/// # struct OrderPaid { order: String }
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
/// # }
/// # async fn send_mail(_: &str) -> Result<(), std::io::Error> { Ok(()) }
/// # fn example(stocks: &Store<Stock>) -> Subscriptions {
/// Subscriptions::new()
///     .on(|paid: OrderPaid, _message| async move {
///         send_mail(&paid.order).await?;
///         Ok(())
///     })
///     .into_aggregate(
///         stocks,
///         |request: &StockRequested| request.sku.clone(),
///         Stock::new,
///         |stock, request| stock.available -= request.quantity,
///     )
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Subscriptions {
    all: Vec<TypeSubscription>,
}

impl fmt::Debug for Subscriptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriptions").field("types", &self.types()).finish()
    }
}

impl Subscriptions {
    /// Creates an empty set of functions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a function for messages of type `M`, under any of the type's names. The closure must capture any state that
    /// it needs.
    ///
    /// A message is acknowledged after the function has returned `Ok`. The function may be called again for the same message,
    /// with the same [`ReceivedMessage::id`].
    #[must_use]
    pub fn on<M, F, R>(mut self, function: F) -> Self
    where
        M: Message + DeserializeOwned + Send + 'static,
        F: Fn(M, Arc<ReceivedMessage>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.all.push(TypeSubscription::new::<M>(move |message, _inbox| match message.decode::<M>() {
            Ok(decoded) => function(decoded, message).map(Handled::from_result).boxed(),
            Err(error) => std::future::ready(Handled::Undecodable(error.to_string())).boxed(),
        }));
        self
    }

    /// Adds an aggregate that receives each message of type `M` exactly once.
    ///
    /// `key` returns the id of the aggregate that a message is for. The aggregate is loaded; if the aggregate doesn't
    /// exist, `make` creates it. Unless the aggregate's inbox has a record of the message, `apply` changes the
    /// aggregate, which is then saved. The message is acknowledged after the majority has the save. After a conflict,
    /// all of these steps are repeated on the newly loaded aggregate. So the closures should have no effects other
    /// than changing the aggregate.
    ///
    /// The inbox remembers messages, not effects. If other subscriptions give the same message to the same aggregate, only
    /// one of them has an effect, and no error is reported. So put all effects of a message on one aggregate into one
    /// `apply`.
    ///
    /// `apply` returns nothing, or a `Result` with an error that converts into a [`HandlerError`]. After an error the
    /// aggregate is not saved.
    #[must_use]
    pub fn into_aggregate<M, T, R>(
        mut self,
        store: &Store<T>,
        key: impl Fn(&M) -> T::Id + Send + Sync + 'static,
        make: impl Fn(T::Id) -> T + Send + Sync + 'static,
        apply: impl Fn(&mut T, &M) -> R + Send + Sync + 'static,
    ) -> Self
    where
        M: Message + DeserializeOwned + Send + Sync + 'static,
        T: ReceivingAggregate + 'static,
        T::Id: 'static,
        R: Applies + 'static,
    {
        let into = Arc::new(IntoAggregate { store: store.clone(), key, make, apply });
        self.all.push(TypeSubscription::new::<M>(move |message, inbox| match message.decode::<M>() {
            Ok(decoded) => aggregate::receive(into.clone(), message.id, decoded, inbox).boxed(),
            Err(error) => std::future::ready(Handled::Undecodable(error.to_string())).boxed(),
        }));
        self
    }

    /// The types that have a function, under all of their names.
    #[must_use]
    pub fn types(&self) -> Vec<&'static str> {
        self.all.iter().flat_map(|subscription| subscription.types.iter().copied()).collect()
    }

    /// The function for messages of this type.
    pub(super) fn find(&self, message_type: &str) -> Option<&TypeSubscription> {
        self.all.iter().find(|subscription| (subscription.is_named)(message_type))
    }

    /// Checks that each type has only one function, and that there is at least one function. Returns a sentence for each
    /// problem.
    pub(super) fn problems(&self) -> Vec<String> {
        let types = self.types();
        let mut problems = Vec::new();
        if types.is_empty() {
            problems.push("no function receives messages; add one with `on` or `into_aggregate`".to_owned());
        }
        for (place, name) in types.iter().enumerate() {
            if types[..place].contains(name) {
                problems.push(format!(
                    "`{name}` has two functions; use a separate queue, or a separate set of subscriptions, for each \
                     function"
                ));
            }
        }
        problems
    }
}

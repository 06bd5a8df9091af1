//! Delivers messages to functions of this process, chosen by message type.
//!
//! ```
//! use document_outbox::{Message, deliver::{HandlerError, HandlerKey, Handlers}};
//!
//! # #[derive(serde::Serialize, serde::Deserialize, Message)]
//! # #[message(type = "order.placed")]
//! # struct OrderPlaced { order: String }
//! # async fn send_mail(_: &str) -> Result<(), std::io::Error> { Ok(()) }
//! let handlers = Handlers::builder()
//!     .on("confirmation", |message: OrderPlaced, _| async move {
//!         send_mail(&message.order).await?;
//!         Ok(())
//!     })
//!     .on(HandlerKey::new("billing").formerly("invoice"), |message: OrderPlaced, _| async move {
//!         match message.order.is_empty() {
//!             true => Err(HandlerError::permanent("the order has no number")),
//!             false => Ok(()),
//!         }
//!     })
//!     .build()?;
//! # Ok::<(), document_outbox::deliver::HandlersError>(())
//! ```
//!
//! Functions and aggregates that receive messages from a queue of RabbitMQ can be handlers too: see
//! [`HandlersBuilder::subscriptions`].
//!
//! # Flow
//! The payload is decoded for each handler of the message's type, and the handlers run at the same time, each in a task
//! of its own. A message counts as delivered once all its handlers have succeeded. The keys of handlers that have
//! succeeded are stored in the entry (`delivered_to`), and these handlers are not called again for this message.
//!
//! # Guarantees
//! - If a handler fails or panics, the other handlers still run, and are not called again because of that failure.
//! - Dropping the delivery aborts the handlers at their next `await`.
//!
//! # Caveats
//! - If the process ends before the success of a handler is stored in the document, the handler is called again.
//!   Handlers must tolerate repeats; [`Envelope::id`] identifies each message.
//! - If a handler is renamed, processes that have only the old key don't know the new key. While such processes run
//!   together with processes that have the new key, they may call the handler again.
//! - A handler that blocks its thread cannot be aborted.
//! - A message that a handler's own save sends is delivered by a separate task, which the handler doesn't wait for. So a
//!   chain of messages needs no stack, and a handler can't wait for itself. If the chain never ends, it runs as long as the
//!   process.

use std::{collections::BTreeSet, fmt, sync::Arc};

use async_trait::async_trait;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{
    Answer, Deliver, Envelope, HANDLERS, Outcome, deadline, handler_error::HandlerError, json, span, within,
};
use crate::aggregate::message::Message;

/// A handler's name in stored documents. It must be stable across deployments and unique in the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerKey {
    current: String,
    former: Vec<String>,
}

impl HandlerKey {
    /// Creates a key without former keys.
    pub fn new(key: impl Into<String>) -> Self {
        Self { current: key.into(), former: Vec::new() }
    }

    /// Adds a former key of the handler, so that the handler doesn't get messages again that it received under that
    /// key.
    #[must_use]
    pub fn formerly(mut self, key: impl Into<String>) -> Self {
        self.former.push(key.into());
        self
    }

    /// The key without its former keys.
    pub(crate) fn current(&self) -> &str {
        &self.current
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.current).chain(&self.former)
    }
}

impl From<&str> for HandlerKey {
    fn from(key: &str) -> Self {
        Self::new(key)
    }
}

impl From<String> for HandlerKey {
    fn from(key: String) -> Self {
        Self::new(key)
    }
}

/// Why handlers can't be combined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandlersError {
    /// Two handlers have the same key, or a key of one handler is a former key of another handler.
    #[error(
        "two handlers have the key `{0}`, so documents could not record which of them has received a message"
    )]
    DuplicateKey(String),
    /// A key is empty.
    #[error("a handler of `{0}` has an empty key")]
    EmptyKey(&'static str),
    /// A set of subscriptions can't receive messages.
    #[error("the subscriptions `{key}`: {problems}")]
    Subscriptions {
        /// The key of the subscriptions.
        key: String,
        /// Every problem, in sentences.
        problems: String,
    },
}

/// What happens to a message for whose type there is no handler.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unhandled {
    /// A new message is saved for the broker, and stays in its document until a process that delivers to a broker takes
    /// it. A message that was saved for a handler is tried again, because another process may have the handler.
    #[default]
    Leave,
    /// The message is dead at once, and operators see it.
    Dead,
    /// The message counts as delivered. Use this without a broker, for events that may have no receiver.
    Ignore,
}

type Call = dyn Fn(Arc<Envelope>) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync;

struct Handler {
    key: HandlerKey,
    message_type: &'static str,
    is_named: Box<dyn Fn(&str) -> bool + Send + Sync>,
    call: Box<Call>,
}

impl Handler {
    fn has_had(&self, envelope: &Envelope) -> bool {
        self.key.all().any(|key| envelope.delivered_to.contains(key))
    }
}

/// Delivers to functions of this process. Clones share the functions. The [module](self) has an example.
#[derive(Clone)]
pub struct Handlers {
    handlers: Arc<[Arc<Handler>]>,
    unhandled: Unhandled,
}

/// Builds [`Handlers`].
#[derive(Default)]
pub struct HandlersBuilder {
    handlers: Vec<Handler>,
    unhandled: Unhandled,
    refused: Option<HandlersError>,
}

impl HandlersBuilder {
    /// Adds a handler for messages of type `M`, under any name of that type. A type can have several handlers.
    ///
    /// The handler gets the message and its envelope.
    #[must_use]
    pub fn on<M, F, R>(self, key: impl Into<HandlerKey>, handler: F) -> Self
    where
        M: Message + DeserializeOwned + Send + 'static,
        F: Fn(M, Arc<Envelope>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let call = move |envelope: Arc<Envelope>| match decode::<M>(&envelope) {
            Ok(message) => handler(message, envelope).boxed(),
            Err(error) => std::future::ready(Err(error)).boxed(),
        };
        self.push(key.into(), M::TYPE, M::is_named, call)
    }

    /// Sets what happens to messages for whose type there is no handler. Default [`Unhandled::Leave`]. A
    /// [`Router`](super::Router) gives such messages to its other destinations, whatever this setting is.
    #[must_use]
    pub fn unhandled(mut self, unhandled: Unhandled) -> Self {
        self.unhandled = unhandled;
        self
    }

    /// Adds a handler for messages whose type `is_named` accepts. Errors name the handler by `message_type`.
    pub(crate) fn push(
        mut self,
        key: HandlerKey,
        message_type: &'static str,
        is_named: impl Fn(&str) -> bool + Send + Sync + 'static,
        call: impl Fn(Arc<Envelope>) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync + 'static,
    ) -> Self {
        self.handlers.push(Handler { key, message_type, is_named: Box::new(is_named), call: Box::new(call) });
        self
    }

    /// Makes [`build`](Self::build) fail.
    pub(crate) fn refuse(mut self, error: HandlersError) -> Self {
        self.refused.get_or_insert(error);
        self
    }

    /// Builds the handlers.
    ///
    /// # Errors
    /// An error if two handlers share a current or former key. The keys of handlers for different message types must
    /// differ too, because operators see only the keys. Also an error if one set of subscriptions has no function, or two
    /// functions for one type.
    pub fn build(self) -> Result<Handlers, HandlersError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }

        let mut seen = BTreeSet::new();
        for handler in &self.handlers {
            for key in handler.key.all() {
                if key.is_empty() {
                    return Err(HandlersError::EmptyKey(handler.message_type));
                }
                if !seen.insert(key) {
                    return Err(HandlersError::DuplicateKey(key.clone()));
                }
            }
        }
        let handlers = self.handlers.into_iter().map(Arc::new).collect();
        Ok(Handlers { handlers, unhandled: self.unhandled })
    }
}

impl Handlers {
    /// Returns a builder without handlers.
    pub fn builder() -> HandlersBuilder {
        HandlersBuilder::default()
    }

    /// Whether there is a handler for messages of this type.
    pub fn handles(&self, message_type: &str) -> bool {
        self.of(message_type).next().is_some()
    }

    fn of(&self, message_type: &str) -> impl Iterator<Item = &Arc<Handler>> {
        self.handlers.iter().filter(move |handler| (handler.is_named)(message_type))
    }

    /// Starts the handlers at once. The returned future waits for the handlers to end.
    fn start(&self, envelope: &Envelope) -> impl Future<Output = Answer> + Send + use<> {
        let unhandled = (!self.handles(&envelope.message_type)).then_some(self.unhandled);
        let message_type = envelope.message_type.clone();
        let mut delivered_to = envelope.delivered_to.clone();
        let shared = Arc::new(envelope.clone());
        let deadline = deadline();
        let span = span(envelope);
        let waiting = self.of(&envelope.message_type).filter(|handler| !handler.has_had(envelope));
        let running: Vec<_> = waiting
            .map(|handler| {
                let (handler, envelope) = (handler.clone(), shared.clone());
                let key = handler.key.current.clone();
                // Call the handler inside the task, because the handler decodes the payload first, which also runs the
                // user's code.
                let run = async move { (handler.call)(envelope).await }.instrument(span.clone());
                let run = within(deadline, run);
                (key, AbortOnDropHandle::new(tokio::spawn(run)))
            })
            .collect();
        async move {
            if let Some(unhandled) = unhandled {
                return of_unhandled(unhandled, &message_type).into();
            }
            let mut failures = Vec::new();
            for (key, task) in running {
                let ended = match deadline {
                    Some(deadline) => tokio::time::timeout_at(deadline, task).await,
                    None => Ok(task.await),
                };
                let Ok(ended) = ended else {
                    failures.push((key, HandlerError::transient("no answer before the claim expired")));
                    continue;
                };
                match ended {
                    Ok(Ok(())) => delivered_to.push(key),
                    Ok(Err(error)) => failures.push((key, error)),
                    Err(error) if error.is_panic() => {
                        failures.push((key, HandlerError::transient("panicked")));
                    }
                    Err(_) => failures.push((
                        key,
                        HandlerError::transient("the handler was stopped because this process is stopping"),
                    )),
                }
            }
            Answer { outcome: outcome(&failures), delivered_to }
        }
    }
}

/// The outcome of a message that has no handler.
fn of_unhandled(unhandled: Unhandled, message_type: &str) -> Outcome {
    let reason = format!("no handler for type `{message_type}` in this process");
    match unhandled {
        Unhandled::Leave => Outcome::Transient(reason),
        Unhandled::Dead => Outcome::Permanent(reason),
        Unhandled::Ignore => Outcome::Delivered,
    }
}

/// Decides the outcome of a message if some of its handlers failed.
fn outcome(failures: &[(String, HandlerError)]) -> Outcome {
    if failures.is_empty() {
        return Outcome::Delivered;
    }
    let text =
        |(key, error): &(String, HandlerError)| format!("handler `{key}`: {}", cut(&error.to_string()));
    let texts: Vec<_> = failures.iter().map(text).collect();
    let is_permanent = |(_, error): &(String, HandlerError)| matches!(error, HandlerError::Permanent(_));
    let is_unavailable = |(_, error): &(String, HandlerError)| matches!(error, HandlerError::Unavailable(_));
    if failures.iter().all(is_permanent) {
        Outcome::Permanent(texts.join("; "))
    } else if failures.iter().all(is_unavailable) {
        Outcome::Unavailable(texts.join("; "))
    } else {
        Outcome::Transient(texts.join("; "))
    }
}

/// Shortens an error text, so that the errors of several handlers fit into one.
fn cut(text: &str) -> &str {
    const LONGEST: usize = 300;
    &text[..text.floor_char_boundary(LONGEST)]
}

fn decode<M: Message + DeserializeOwned>(envelope: &Envelope) -> Result<M, HandlerError> {
    json::check_depth(&envelope.payload).map_err(|error| HandlerError::permanent(error.to_string()))?;
    envelope.decode().map_err(|error| {
        let (name, what) = (M::TYPE, without_values(&error.to_string()));
        HandlerError::permanent(format!("the payload cannot be decoded as `{name}`: {what}"))
    })
}

/// Removes quoted values from serde's text for a failed decoding. The names and expected types in this text come from
/// the Rust type; everything else in it may come from the payload.
pub(crate) fn without_values(text: &str) -> String {
    let named = ["missing field `", "duplicate field `"];
    if let Some(start) = named.iter().find_map(|prefix| text.find(prefix)) {
        return text[start..].to_owned();
    }
    let quoting =
        ["invalid type: ", "invalid value: ", "invalid length ", "unknown variant `", "unknown field `"];
    let what = quoting.into_iter().find(|prefix| text.contains(prefix));
    match (what, text.rsplit_once(", expected ")) {
        (Some(what), Some((_, expected))) => {
            format!("{}, expected {expected}", what.trim_end_matches([' ', ':', '`']))
        }
        _ => {
            "a value does not fit the type (the reason is left out because it may quote the value)".to_owned()
        }
    }
}

#[async_trait]
impl Deliver for Handlers {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let started: Vec<_> = window.iter().map(|envelope| self.start(envelope)).collect();
        join_all(started).await
    }

    fn via(&self, message_type: &str) -> Option<&str> {
        let is_taken = self.unhandled != Unhandled::Leave || self.handles(message_type);
        is_taken.then_some(HANDLERS)
    }

    fn serves(&self, via: Option<&str>) -> bool {
        via == Some(HANDLERS)
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.handlers.iter().map(|handler| (&handler.key.current, handler.message_type));
        f.debug_map().entries(keys).finish()
    }
}

impl fmt::Debug for HandlersBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.handlers.iter().map(|handler| &handler.key)).finish()
    }
}

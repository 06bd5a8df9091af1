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

use std::{collections::BTreeSet, fmt, sync::Arc};

use async_trait::async_trait;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{Answer, Deliver, Envelope, HANDLERS, Outcome, deadline, json, span, within};
use crate::aggregate::message::Message;

/// A handler's failure. Its text is stored with the message and shown to operators, so it must not contain a
/// payload or a secret.
///
/// The operator `?` converts any error to [`Transient`](Self::Transient), with the texts of the error and of its
/// sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerError {
    /// The handler may succeed later.
    Transient(String),
    /// The handler can never succeed. The message dies at once, unless another handler of the message
    /// failed with an error of another kind.
    Permanent(String),
    /// Something that the handler needs is unavailable, so other messages would fail too. No attempt is counted.
    Unavailable(String),
}

impl HandlerError {
    /// Creates an error for a handler that may succeed later.
    pub fn transient(reason: impl Into<String>) -> Self {
        Self::Transient(reason.into())
    }

    /// Creates an error for a handler that can never succeed.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Self::Permanent(reason.into())
    }

    /// Creates an error for a handler that needs something that is unavailable.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(reason.into())
    }
}

// `HandlerError` itself does not implement `std::error::Error`, because that would overlap with this implementation.
impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Skip the source if the error's own text already contains the text of the source, which is the case for
            // many errors.
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        Self::Transient(text)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Transient(reason) | Self::Permanent(reason) | Self::Unavailable(reason)) = self;
        f.write_str(reason)
    }
}

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
}

type Call = dyn Fn(Arc<Envelope>) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync;

struct Handler {
    key: HandlerKey,
    message_type: &'static str,
    is_named: fn(&str) -> bool,
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
}

/// Builds [`Handlers`].
#[derive(Default)]
pub struct HandlersBuilder {
    handlers: Vec<Handler>,
}

impl HandlersBuilder {
    /// Adds a handler for messages of type `M`, under any name of that type. A type can have several handlers.
    ///
    /// The handler gets the message and its envelope.
    #[must_use]
    pub fn on<M, F, R>(mut self, key: impl Into<HandlerKey>, handler: F) -> Self
    where
        M: Message + DeserializeOwned + Send + 'static,
        F: Fn(M, Arc<Envelope>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let call = move |envelope: Arc<Envelope>| match decode::<M>(&envelope) {
            Ok(message) => handler(message, envelope).boxed(),
            Err(error) => std::future::ready(Err(error)).boxed(),
        };
        self.handlers.push(Handler {
            key: key.into(),
            message_type: M::TYPE,
            is_named: M::is_named,
            call: Box::new(call),
        });
        self
    }

    /// Builds the handlers.
    ///
    /// # Errors
    /// An error if two handlers share a current or former key. The keys of handlers for different message types must
    /// differ too, because operators see only the keys.
    pub fn build(self) -> Result<Handlers, HandlersError> {
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
        Ok(Handlers { handlers: self.handlers.into_iter().map(Arc::new).collect() })
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
        let handled = self.handles(&envelope.message_type);
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
            if !handled {
                return Outcome::Transient(format!("no handler for type `{message_type}` in this process"))
                    .into();
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
        self.handles(message_type).then_some(HANDLERS)
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

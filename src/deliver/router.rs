//! Sends some messages to one deliverer and the rest to another.
//!
//! # Flow
//! When a message is saved, its type decides which `via` is stored with the message ([`Deliver::via`]). When the
//! message is delivered, the stored `via` decides, even if the routes have changed. So a message never goes to a
//! deliverer other than the deliverer for which it was saved. For example, a message that was saved for the broker
//! still goes there after its type got a handler.
//!
//! # Guarantees
//! - The parts of a window are delivered over their routes concurrently. If one route fails, panics, is unavailable or
//!   has no answer by the [`deadline`], the other routes still deliver, and their answers don't change.
//! - A message with an unknown `via` fails and never goes to another deliverer.
//!
//! # Caveats
//! A router is available while any of its routes is available. So a caller that stops at the first
//! [`Outcome::Unavailable`] delays the messages of the other routes.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc};

use async_trait::async_trait;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all, select_all},
};
use tokio::time::timeout_at;

use super::{Answer, Deliver, Envelope, HANDLERS, Handlers, Outcome, deadline};

/// Chooses among several [`Deliver`]s by message type.
///
/// ```no_run
/// # use document_outbox::deliver::{Handlers, RabbitMq, Router};
/// # fn example(rabbit: RabbitMq, handlers: Handlers, webhook: RabbitMq) {
/// let router = Router::new(rabbit)
///     .handlers(handlers)
///     .route("webhook", webhook, ["invoice.sent"]);
/// # }
/// ```
#[derive(Clone)]
pub struct Router {
    routes: Vec<Route>,
    otherwise: Arc<dyn Deliver>,
}

#[derive(Clone)]
struct Route {
    via: String,
    takes: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    deliverer: Arc<dyn Deliver>,
}

impl Router {
    /// Creates a router that sends every message to `otherwise`, usually a [`RabbitMq`](super::RabbitMq).
    pub fn new(otherwise: impl Deliver) -> Self {
        Self { routes: Vec::new(), otherwise: Arc::new(otherwise) }
    }

    /// Sends messages whose type has a handler to the handlers.
    #[must_use]
    pub fn handlers(self, handlers: Handlers) -> Self {
        let types = handlers.clone();
        self.push(HANDLERS, handlers, move |message_type| types.handles(message_type))
    }

    /// Sends messages of these types to `deliverer`, and stores `via` with them. If a type has two routes, the first
    /// applies.
    ///
    /// The name `via` is stored in documents and must be as stable as a message type. A worker can deliver
    /// messages with this `via` if it has a route with that name.
    #[must_use]
    pub fn route<T: Into<String>>(
        self,
        via: impl Into<String>,
        deliverer: impl Deliver,
        types: impl IntoIterator<Item = T>,
    ) -> Self {
        let types: Vec<String> = types.into_iter().map(Into::into).collect();
        let takes = move |message_type: &str| types.iter().any(|taken| taken == message_type);
        self.push(via, deliverer, takes)
    }

    fn push(
        mut self,
        via: impl Into<String>,
        deliverer: impl Deliver,
        takes: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.routes.push(Route { via: via.into(), takes: Arc::new(takes), deliverer: Arc::new(deliverer) });
        self
    }

    /// Returns the deliverer for a message with this `via`, as its index in [`deliverers`](Self::deliverers).
    fn place_of(&self, via: Option<&str>) -> Option<usize> {
        let routed = self.routes.iter().position(|route| Some(&*route.via) == via);
        routed.or_else(|| self.otherwise.serves(via).then_some(self.routes.len()))
    }

    /// Returns every deliverer, with `otherwise` last.
    fn deliverers(&self) -> impl Iterator<Item = &Arc<dyn Deliver>> {
        let routed = self.routes.iter().map(|route| &route.deliverer);
        routed.chain([&self.otherwise])
    }
}

/// Delivers one deliverer's part of a window. Returns each answer with its place in the whole window.
async fn deliver_part(
    deliverer: &dyn Deliver,
    places: Vec<usize>,
    window: &[Envelope],
) -> Vec<(usize, Answer)> {
    if places.is_empty() {
        return Vec::new();
    }
    let part: Vec<_> = places.iter().map(|place| window[*place].clone()).collect();
    let answers = deliver_guarded(deliverer, &part).await;
    places.into_iter().zip(answers).collect()
}

/// Returns one answer for each message, whatever the deliverer does. If the deliverer misbehaves, its messages get
/// failures as answers.
async fn deliver_guarded(deliverer: &dyn Deliver, part: &[Envelope]) -> Vec<Answer> {
    let delivery = AssertUnwindSafe(deliverer.deliver(part)).catch_unwind();
    let delivered = match deadline() {
        Some(deadline) => timeout_at(deadline, delivery).await,
        None => Ok(delivery.await),
    };

    let outcome = match delivered {
        Ok(Ok(answers)) if answers.len() == part.len() => return answers,
        Ok(Ok(answers)) => Outcome::Transient(format!(
            "the deliverer of this route answered {} of {} messages",
            answers.len(),
            part.len()
        )),
        Ok(Err(_panic)) => Outcome::Transient("the deliverer of this route panicked".to_owned()),
        Err(_elapsed) if !deliverer.is_available() => Outcome::Unavailable(
            "the route became unavailable, and no answer arrived before the claim expired".to_owned(),
        ),
        Err(_elapsed) => Outcome::Transient("no answer before the claim expired".to_owned()),
    };
    part.iter().map(|_| outcome.clone().into()).collect()
}

#[async_trait]
impl Deliver for Router {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let chosen: Vec<_> = window.iter().map(|envelope| self.place_of(envelope.via.as_deref())).collect();
        let mut parts = Vec::new();
        for (index, deliverer) in self.deliverers().enumerate() {
            let places = (0..window.len()).filter(|place| chosen[*place] == Some(index)).collect();
            parts.push(deliver_part(deliverer.as_ref(), places, window));
        }

        let mut answers = vec![None; window.len()];
        for (place, answer) in join_all(parts).await.into_iter().flatten() {
            answers[place] = Some(answer);
        }

        let mut all = Vec::with_capacity(window.len());
        for (envelope, answer) in window.iter().zip(answers) {
            all.push(answer.unwrap_or_else(|| {
                let via = envelope.via.as_deref().unwrap_or("the broker");
                Outcome::Transient(format!("this process has no route for messages with via `{via}`")).into()
            }));
        }
        all
    }

    fn via(&self, message_type: &str) -> Option<&str> {
        let route = self.routes.iter().find(|route| (route.takes)(message_type));
        match route {
            Some(route) => Some(&route.via),
            None => self.otherwise.via(message_type),
        }
    }

    fn serves(&self, via: Option<&str>) -> bool {
        self.place_of(via).is_some()
    }

    fn is_available(&self) -> bool {
        self.deliverers().any(|deliverer| deliverer.is_available())
    }

    async fn available(&self) {
        let available: Vec<BoxFuture<'_, ()>> =
            self.deliverers().map(|deliverer| deliverer.available()).collect();
        // `select_all` requires at least one future; there is always the deliverer `otherwise`.
        select_all(available).await;
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<_> = self.routes.iter().map(|route| &route.via).collect();
        f.debug_struct("Router").field("routes", &routes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mongodb::{Namespace, bson::Bson};
    use tokio::time::Instant;

    use super::*;
    use crate::{deliver::within, stored::document_ref::DocumentRef};

    struct Fails(Failing);

    #[derive(Clone, Copy)]
    enum Failing {
        Not,
        Hangs,
        HangsAway,
        Panics,
        Miscounts,
    }

    #[async_trait]
    impl Deliver for Fails {
        async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
            match self.0 {
                Failing::Not => window.iter().map(|_| Outcome::Delivered.into()).collect(),
                Failing::Hangs | Failing::HangsAway => std::future::pending().await,
                Failing::Panics => unreachable!("on purpose"),
                Failing::Miscounts => vec![Outcome::Delivered.into(); window.len() - 1],
            }
        }

        fn is_available(&self) -> bool {
            !matches!(self.0, Failing::HangsAway)
        }
    }

    fn envelope(via: Option<&str>) -> Envelope {
        let id = uuid::Uuid::now_v7();
        Envelope {
            document: DocumentRef::by_id(Namespace::new("shop", "orders"), id.to_string()),
            id,
            message_type: "any".into(),
            payload: Bson::Null,
            headers: std::collections::BTreeMap::new(),
            via: via.map(str::to_owned),
            created_at: None,
            attempts: 0,
            delivered_to: Vec::new(),
        }
    }

    /// P3: a failure of one route doesn't repeat messages of another route.
    #[tokio::test(start_paused = true)]
    async fn a_route_in_trouble_spoils_no_answer_of_another() {
        for (failing, free) in [
            (Failing::Hangs, false),
            (Failing::HangsAway, true),
            (Failing::Panics, false),
            (Failing::Miscounts, false),
        ] {
            let router = Router::new(Fails(Failing::Not)).route("slow", Fails(failing), ["slow"]);
            let window = [envelope(None), envelope(Some("slow")), envelope(None), envelope(Some("slow"))];
            let deadline = Instant::now() + Duration::from_secs(1);
            let delivery = within(Some(deadline), router.deliver(&window));
            let answers = tokio::time::timeout(Duration::from_secs(2), delivery).await.unwrap();
            assert_eq!(answers.len(), 4);
            for place in [0, 2] {
                assert_eq!(answers[place].outcome, Outcome::Delivered);
            }
            for place in [1, 3] {
                match &answers[place].outcome {
                    Outcome::Transient(_) => assert!(!free),
                    Outcome::Unavailable(_) => assert!(free),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

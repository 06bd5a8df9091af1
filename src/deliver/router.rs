//! Some messages one way, the rest another.
//!
//! # Flow
//! When a message is saved, its type decides the `via` that is stored with it ([`Deliver::via`]); when it is delivered,
//! the stored `via` decides, whatever the routes are by then. So a message never goes a way that was not meant for it:
//! one saved for the broker still goes there after its type got a handler.
//!
//! # Guarantees
//! - The ways of one window are taken at the same time; one that fails or is unavailable doesn't keep the others from
//!   delivering.
//! - A message whose `via` is none of the ways' fails; it never goes elsewhere.
//!
//! # Caveats
//! A router is available while any of its ways is. A caller that stops at the first [`Outcome::Unavailable`] would hold
//! up the messages of the other ways.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures::future::{BoxFuture, join_all, select_all};

use super::{Answer, Deliver, Envelope, HANDLERS, Handlers, Outcome};

/// Chooses among several [`Deliver`]s by a message's type.
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
    /// Everything goes to `otherwise`, usually a [`RabbitMq`](super::RabbitMq).
    pub fn new(otherwise: impl Deliver) -> Self {
        Self { routes: Vec::new(), otherwise: Arc::new(otherwise) }
    }

    /// Messages whose type has a handler go to the handlers.
    #[must_use]
    pub fn handlers(self, handlers: Handlers) -> Self {
        let types = handlers.clone();
        self.push(HANDLERS, handlers, move |message_type| types.handles(message_type))
    }

    /// Messages of these types go to `deliverer`, with `via` stored with them. Of two routes for a type the first counts.
    ///
    /// The name is kept in documents and must be as stable as a type; a worker serves such messages if it has a
    /// route of that name.
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

    /// The way of a message with this `via`: its place among the [`ways`](Self::ways).
    fn way(&self, via: Option<&str>) -> Option<usize> {
        let routed = self.routes.iter().position(|route| Some(&*route.via) == via);
        routed.or_else(|| self.otherwise.serves(via).then_some(self.routes.len()))
    }

    /// Every deliverer, `otherwise` last.
    fn ways(&self) -> impl Iterator<Item = &Arc<dyn Deliver>> {
        let routed = self.routes.iter().map(|route| &route.deliverer);
        routed.chain([&self.otherwise])
    }
}

/// Delivers the part of a window that goes one way; each answer with its place in the whole.
async fn deliver_part(
    deliverer: &dyn Deliver,
    places: Vec<usize>,
    window: &[Envelope],
) -> Vec<(usize, Answer)> {
    if places.is_empty() {
        return Vec::new();
    }
    let part: Vec<_> = places.iter().map(|place| window[*place].clone()).collect();
    let answers = deliverer.deliver(&part).await;
    places.into_iter().zip(answers).collect()
}

#[async_trait]
impl Deliver for Router {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let chosen: Vec<_> = window.iter().map(|envelope| self.way(envelope.via.as_deref())).collect();
        let parts = self.ways().enumerate().map(|(way, deliverer)| {
            let places = (0..window.len()).filter(|place| chosen[*place] == Some(way)).collect();
            deliver_part(deliverer.as_ref(), places, window)
        });
        let parts: Vec<_> = parts.collect();
        let mut answers = vec![None; window.len()];
        for (place, answer) in join_all(parts).await.into_iter().flatten() {
            answers[place] = Some(answer);
        }
        let unanswered = |(envelope, way): (&Envelope, Option<usize>)| {
            let via = envelope.via.as_deref().unwrap_or("the broker");
            Answer::from(Outcome::Transient(match way {
                None => format!("no route for messages via `{via}` in this process"),
                Some(_) => {
                    format!("the deliverer for messages via `{via}` gave fewer answers than it got messages")
                }
            }))
        };
        let places = window.iter().zip(chosen);
        let answers = answers.into_iter().zip(places);
        answers.map(|(answer, place)| answer.unwrap_or_else(|| unanswered(place))).collect()
    }

    fn via(&self, message_type: &str) -> Option<&str> {
        let route = self.routes.iter().find(|route| (route.takes)(message_type));
        match route {
            Some(route) => Some(&route.via),
            None => self.otherwise.via(message_type),
        }
    }

    fn serves(&self, via: Option<&str>) -> bool {
        self.way(via).is_some()
    }

    fn is_available(&self) -> bool {
        self.ways().any(|deliverer| deliverer.is_available())
    }

    async fn available(&self) {
        let ways: Vec<BoxFuture<'_, ()>> = self.ways().map(|deliverer| deliverer.available()).collect();
        // There is always one way, `otherwise`, as `select_all` demands.
        select_all(ways).await;
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<_> = self.routes.iter().map(|route| &route.via).collect();
        f.debug_struct("Router").field("routes", &routes).finish_non_exhaustive()
    }
}

//! A deliverer that is known only after the inline dispatcher that uses it.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::SetOnce;

use super::{Answer, Deliver, Envelope, Outcome};

/// Delivers through the deliverer that it is given later, and is unavailable until then. Clones share the deliverer.
#[derive(Clone, Default)]
pub(crate) struct LateDeliverer {
    deliverer: Arc<SetOnce<Box<dyn Deliver>>>,
}

impl LateDeliverer {
    /// Sets the deliverer. Only the first call has an effect.
    pub(crate) fn set(&self, deliverer: impl Deliver) {
        // The error only says that there is a deliverer already.
        let _ = self.deliverer.set(Box::new(deliverer));
    }
}

#[async_trait]
impl Deliver for LateDeliverer {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        if let Some(deliverer) = self.deliverer.get() {
            return deliverer.deliver(window).await;
        }

        let early = || Outcome::Unavailable("the deliverer is not known yet".into());
        window.iter().map(|_| early().into()).collect()
    }

    fn via(&self, message_type: &str) -> Option<&str> {
        self.deliverer.get()?.via(message_type)
    }

    fn serves(&self, via: Option<&str>) -> bool {
        self.deliverer.get().is_some_and(|deliverer| deliverer.serves(via))
    }

    fn is_available(&self) -> bool {
        self.deliverer.get().is_some_and(|deliverer| deliverer.is_available())
    }

    async fn available(&self) {
        self.deliverer.wait().await.available().await;
    }
}

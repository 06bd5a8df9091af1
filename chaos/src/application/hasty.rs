//! An implementation of `Deliver` that is broken on purpose. A storm must find its defect.

use async_trait::async_trait;
use document_outbox::deliver::{Answer, Deliver, Envelope, Outcome, RabbitMq};

/// Reports each message as delivered as soon as it is sent, so that messages are cleared before RabbitMQ has confirmed them.
pub(super) struct Hasty(pub(super) RabbitMq);

#[async_trait]
impl Deliver for Hasty {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let (broker, later) = (self.0.clone(), window.to_vec());
        tokio::spawn(async move { broker.deliver(&later).await });
        window.iter().map(|_| Outcome::Delivered.into()).collect()
    }

    fn is_available(&self) -> bool {
        self.0.is_available()
    }

    async fn available(&self) {
        self.0.available().await;
    }
}

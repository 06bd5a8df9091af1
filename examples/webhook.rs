//! Delivers to webhooks, signed as <https://www.standardwebhooks.com> specifies: `cargo run --example webhook`.
use axum::{Router, body::Body, body::Bytes, http, routing::post};
use document_outbox::deliver::{Answer, Deliver, Envelope, Outcome, PayloadFormat, conformance, json};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mongodb::bson::{DateTime, doc};
use standardwebhooks::Webhook;

struct Webhooks(String, Webhook);

#[async_trait::async_trait]
impl Deliver for Webhooks {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| Outcome::Transient(error.to_string());
        let post = |message| async move { self.post(message).await.unwrap_or_else(failed).into() };
        futures::future::join_all(window.iter().map(post)).await
    }
}

impl Webhooks {
    async fn post(&self, message: &Envelope) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
        let body = json::encode(&message.payload, PayloadFormat::Json)?;
        let (id, seconds) = (message.id.to_string(), DateTime::now().timestamp_millis() / 1_000);
        let signature = self.1.sign(&id, seconds, &body)?;
        let request =
            http::Request::post(&self.0).header("webhook-id", id).header("webhook-timestamp", seconds);
        let request = request.header("webhook-signature", signature).body(Body::from(body))?;
        match Client::builder(TokioExecutor::new()).build_http().request(request).await?.status() {
            status if status.is_success() => Ok(Outcome::Delivered),
            status if status.is_client_error() => Ok(Outcome::Permanent(status.to_string())),
            status => Ok(Outcome::Transient(status.to_string())),
        }
    }
}

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let check = |headers: http::HeaderMap, body: Bytes| async move {
        let verified = Webhook::new(SECRET).and_then(|secret| secret.verify(&body, &headers));
        verified.map_err(|error| (http::StatusCode::UNAUTHORIZED, error.to_string()))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let webhooks = Webhooks(format!("http://{}/", listener.local_addr()?), Webhook::new(SECRET)?);
    tokio::spawn(axum::serve(listener, Router::new().route("/", post(check))).into_future());
    // In an application, write `InlineDispatcher::builder(&client).deliver_to(webhooks)`.
    let placed = conformance::envelope("order.placed", doc! { "order": "o-1" });
    assert_eq!(webhooks.deliver(&[placed]).await[0].outcome, Outcome::Delivered);
    Ok(())
}

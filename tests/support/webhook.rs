//! Implements a deliverer as an application would: it sends each message as an HTTP POST in the binary mode
//! of CloudEvents.

use std::{convert::Infallible, error::Error, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use document_outbox::deliver::{Answer, Deliver, Envelope, Outcome, PayloadFormat, json};
use futures::future::join_all;
use http_body_util::{Empty, Full};
use hyper::{Request, Response, StatusCode, body::Bytes, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::UnboundedSender,
    task::JoinHandle,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Posts messages to a receiver.
pub(crate) struct Webhook {
    /// The address of the receiver.
    pub(crate) receiver: SocketAddr,
}

#[async_trait]
impl Deliver for Webhook {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let posts = window.iter().map(|envelope| timeout(PATIENCE, self.post(envelope)));
        let late = || Outcome::Transient(format!("no answer in {PATIENCE:?}"));
        let outcomes = join_all(posts).await.into_iter();
        outcomes.map(|outcome| outcome.unwrap_or_else(|_| late()).into()).collect()
    }
}

impl Webhook {
    async fn post(&self, envelope: &Envelope) -> Outcome {
        let request = match self.request(envelope) {
            Ok(request) => request,
            Err(error) => return Outcome::Permanent(format!("no HTTP request can hold it: {error}")),
        };
        // If the receiver was not reached, no attempt is counted. If the receiver was reached but did not answer, the
        // message may have arrived, so it is retried.
        let Ok(stream) = TcpStream::connect(self.receiver).await else {
            return Outcome::Unavailable(format!("{} is not reachable", self.receiver));
        };
        match send(stream, request).await {
            Err(error) => Outcome::Transient(format!("{}: {error}", self.receiver)),
            Ok(status) if status.is_success() => Outcome::Delivered,
            Ok(StatusCode::SERVICE_UNAVAILABLE) => Outcome::Unavailable("it answers 503".into()),
            Ok(StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => {
                Outcome::Transient("it asks to try again later".into())
            }
            Ok(status) if status.is_client_error() => Outcome::Permanent(format!("it answers {status}")),
            Ok(status) => Outcome::Transient(format!("it answers {status}")),
        }
    }

    fn request(&self, envelope: &Envelope) -> Result<Request<Full<Bytes>>, Box<dyn Error + Send + Sync>> {
        let body = json::encode(&envelope.payload, PayloadFormat::Json)?;
        let request = Request::post("/")
            .header("host", self.receiver.to_string())
            .header("content-type", "application/json")
            .header("ce-specversion", "1.0")
            .header("ce-id", envelope.id.to_string())
            .header("ce-type", &envelope.message_type)
            .header("ce-source", envelope.document.source());
        Ok(request.body(body.into())?)
    }
}

async fn send(stream: TcpStream, request: Request<Full<Bytes>>) -> hyper::Result<StatusCode> {
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection); // Ends with the sender.
    Ok(sender.send_request(request).await?.status())
}

/// Starts a receiver that accepts messages with an id, except `order.refused`, and passes the ids on.
pub(crate) fn receive(listener: TcpListener, taken: UnboundedSender<String>) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let taken = taken.clone();
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let header = |name| request.headers().get(name)?.to_str().ok().map(str::to_owned);
                let status = match (header("ce-id"), header("ce-type").as_deref()) {
                    (None, _) | (_, Some("order.refused")) => StatusCode::UNPROCESSABLE_ENTITY,
                    (Some(id), _) => taken.send(id).map_or(StatusCode::GONE, |()| StatusCode::NO_CONTENT),
                };
                let mut response = Response::new(Empty::<Bytes>::new());
                *response.status_mut() = status;
                std::future::ready(Ok::<_, Infallible>(response))
            });
            tokio::spawn(server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    })
}

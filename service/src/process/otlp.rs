//! Sends traces to a collector over OTLP (HTTP with protobuf). The `OTEL_` variables of the OpenTelemetry
//! specification define the destination and the sampling.

use std::{env, fmt, time::Duration};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connect, HttpConnector},
    },
    rt::TokioExecutor,
};
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::{Resource, resource::EnvResourceDetector, trace::SdkTracerProvider};
use tokio::runtime::Handle;
use tracing_subscriber::{Layer, filter::FilterFn};

use crate::process::{
    settings::Program,
    telemetry::{Spans, is_harmless},
};

const LONGEST_ANSWER: usize = 1024 * 1024;
const LONGEST_EXCHANGE: Duration = Duration::from_secs(10);

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The exporter's text is left out because it quotes the endpoint, which may contain a password.
    #[error(
        "OTEL_EXPORTER_OTLP_ENDPOINT or another of the OTEL_EXPORTER_OTLP_ variables is invalid; correct it"
    )]
    Settings,
    #[error("the certificates of this machine can't be read")]
    Certificates(#[source] std::io::Error),
}

/// Sends traces.
pub(crate) struct Export(SdkTracerProvider);

impl Export {
    /// Starts to send traces from tasks of `runtime`. The returned layer collects the spans.
    pub(crate) fn start(
        program: &Program,
        endpoint: &str,
        runtime: &Handle,
    ) -> Result<(Self, Spans), StartError> {
        let exporter = SpanExporter::builder().with_http();
        // A machine may have no certificates, and needs none to reach a collector on the same machine.
        let exporter = if endpoint.starts_with("https:") {
            exporter.with_http_client(Collector::new(with_tls()?, runtime))
        } else {
            exporter.with_http_client(Collector::new(HttpConnector::new(), runtime))
        };
        let exporter = exporter.build().map_err(|_| StartError::Settings)?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource(program))
            .build();

        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(program.name))
            .with_location(false)
            .with_threads(false)
            .with_filter(FilterFn::new(|metadata| {
                is_harmless(metadata) && !is_of_the_export(metadata.target())
            }));

        Ok((Self(provider), layer.boxed()))
    }

    /// Sends the last traces, within this time.
    pub(crate) fn flush(self, within: Duration) {
        if let Err(error) = self.0.shutdown_with_timeout(within) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// The resource that traces belong to. The variables of the specification take precedence over the
/// program's own name.
fn resource(program: &Program) -> Resource {
    let own = Resource::builder_empty()
        .with_service_name(program.name)
        .with_attribute(KeyValue::new("service.version", program.version))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => own.with_service_name(name).build(),
        _ => own.build(),
    }
}

/// Whether a span is from the export itself. If such spans were exported, the export would never end.
fn is_of_the_export(target: &str) -> bool {
    ["hyper", "opentelemetry", "rustls"].iter().any(|own| target.starts_with(own))
}

/// The HTTP client. The exporter calls it from a thread outside of any runtime.
struct Collector<C> {
    client: Client<C, Full<Bytes>>,
    runtime: Handle,
}

impl<C: Connect + Clone> Collector<C> {
    fn new(connector: C, runtime: &Handle) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build(connector), runtime: runtime.clone() }
    }
}

fn with_tls() -> Result<HttpsConnector<HttpConnector>, StartError> {
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(document_outbox::internal::provider())
        .map_err(StartError::Certificates)?;
    Ok(connector.https_or_http().enable_http1().build())
}

#[async_trait]
impl<C: Connect + Clone + Send + Sync + 'static> HttpClient for Collector<C> {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let exchange = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        self.runtime.spawn(async { tokio::time::timeout(LONGEST_EXCHANGE, exchange).await }).await??
    }
}

impl<C> fmt::Debug for Collector<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

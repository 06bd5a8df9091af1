//! Creates tracing spans, and propagates the trace context with a message from its save to its delivery.
//!
//! Names and attributes follow OpenTelemetry's semantic conventions for messaging. Without the feature `opentelemetry`,
//! the spans are plain `tracing` spans, and a message has only the trace context that its sender set.

use std::collections::BTreeMap;

use mongodb::Namespace;
use tracing::{Span, field::Empty, info_span};

use crate::{
    deliver::{Envelope, HANDLERS, Outcome},
    observe::metrics::DispatchPath,
    stored::{
        document_ref::DocumentRef,
        entry::{TRACEPARENT, TRACESTATE},
    },
};

/// Creates the span of a save, an insert or a delete, named by `verb`.
pub(crate) fn save(verb: &'static str, namespace: &Namespace) -> Span {
    info_span!(
        "save",
        otel.name = %format_args!("{verb} {}", namespace.coll),
        db.system.name = "mongodb",
        db.namespace = namespace.db,
        db.collection.name = namespace.coll,
        messaging.batch.message_count = Empty,
        "error.type" = Empty,
        otel.status_code = Empty,
    )
}

/// Creates the span of a pass over one document's messages. In the inline dispatcher the span is part of the trace of
/// the save.
pub(crate) fn dispatch(document: &DocumentRef, path: DispatchPath) -> Span {
    let name = format_args!("dispatch {}", document.namespace.coll);
    match path {
        // Don't make this span a child in the subscriber, because a child would keep the save's span open, although
        // that span should end earlier.
        DispatchPath::Inline => {
            let span = info_span!(
                parent: None,
                "dispatch",
                otel.name = %name,
                path = path.as_str(),
                db.namespace = document.namespace.db,
                db.collection.name = document.namespace.coll,
            );
            context::follow(&span, &context::headers(&Span::current()));
            span
        }
        DispatchPath::Dispatcher => info_span!(
            "dispatch",
            otel.name = %name,
            path = path.as_str(),
            db.namespace = document.namespace.db,
            db.collection.name = document.namespace.coll,
        ),
    }
}

/// Creates the span of one message's delivery. An inline delivery is part of the trace of the save; other deliveries
/// are linked to that trace. After this call the message carries the trace context of its delivery.
pub(crate) fn deliver(envelope: &mut Envelope, path: DispatchPath) -> Span {
    let (operation, kind, system) = match envelope.via.as_deref() {
        Some(HANDLERS) => ("process", "consumer", Some("document_outbox")),
        _ => ("send", "producer", None),
    };
    let span = info_span!(
        "deliver",
        otel.name = %format_args!("{operation} {}", envelope.message_type),
        otel.kind = kind,
        path = path.as_str(),
        "messaging.operation.name" = operation,
        "messaging.operation.type" = operation,
        messaging.system = system,
        messaging.destination.name = Empty,
        messaging.rabbitmq.destination.routing_key = Empty,
        messaging.message.id = %envelope.id,
        "error.type" = Empty,
        otel.status_code = Empty,
    );

    match path {
        DispatchPath::Inline => context::follow(&span, &envelope.headers),
        DispatchPath::Dispatcher => context::link(&span, &envelope.headers),
    }
    carry(&mut envelope.headers, &span);
    span
}

/// Creates the span for the processing of one received message, in the trace of its sender.
#[cfg(feature = "rabbitmq")]
pub(crate) fn receive(
    message_type: &str,
    id: Option<uuid::Uuid>,
    queue: &str,
    headers: &BTreeMap<String, String>,
) -> Span {
    let span = info_span!(
        "receive",
        otel.name = %format_args!("process {message_type}"),
        otel.kind = "consumer",
        "messaging.operation.name" = "process",
        "messaging.operation.type" = "process",
        messaging.system = "rabbitmq",
        messaging.destination.name = queue,
        messaging.message.id = id.map(tracing::field::display),
        "error.type" = Empty,
        otel.status_code = Empty,
    );
    context::follow(&span, headers);
    span
}

/// Records a message's outcome on its span.
pub(crate) fn delivered(span: &Span, outcome: &Outcome) {
    match outcome {
        Outcome::Delivered => {}
        Outcome::Transient(_) | Outcome::Unroutable(_) => failed(span, "transient"),
        Outcome::Permanent(_) => failed(span, "permanent"),
        Outcome::Unavailable(_) => failed(span, "unavailable"),
    }
}

/// Marks a span as failed, with an error type.
pub(crate) fn failed(span: &Span, error_type: &'static str) {
    span.record("error.type", error_type);
    span.record("otel.status_code", "ERROR");
}

/// Returns the headers to store with a message. The headers contain the trace context of the save, unless the sender
/// set a trace context.
pub(crate) fn stored(mut headers: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if !headers.contains_key(TRACEPARENT) {
        carry(&mut headers, &Span::current());
    }
    headers
}

/// Replaces the trace context in a message's headers with the trace context of the span, if the span has one.
fn carry(headers: &mut BTreeMap<String, String>, span: &Span) {
    let trace = context::headers(span);
    if !trace.is_empty() {
        headers.remove(TRACESTATE);
        headers.extend(trace);
    }
}

#[cfg(not(feature = "opentelemetry"))]
mod context {
    use super::{BTreeMap, Span};

    pub(super) fn headers(_span: &Span) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    pub(super) fn follow(_span: &Span, _headers: &BTreeMap<String, String>) {}

    pub(super) fn link(_span: &Span, _headers: &BTreeMap<String, String>) {}
}

#[cfg(feature = "opentelemetry")]
mod context {
    use opentelemetry::{
        Context,
        trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
    };
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use super::{BTreeMap, Span, TRACEPARENT, TRACESTATE};

    /// Returns the trace context of a span as headers. Empty if no tracer is installed.
    pub(super) fn headers(span: &Span) -> BTreeMap<String, String> {
        let context = span.context();
        let found = context.span().span_context().clone();
        if !found.is_valid() {
            return BTreeMap::new();
        }
        let (trace, id, flags) = (found.trace_id(), found.span_id(), found.trace_flags().to_u8());
        let mut headers = BTreeMap::from([(TRACEPARENT.to_owned(), format!("00-{trace}-{id}-{flags:02x}"))]);
        let state = found.trace_state().header();
        if !state.is_empty() {
            headers.insert(TRACESTATE.to_owned(), state);
        }
        headers
    }

    /// Makes a span a child of the span that these headers name, if they name one.
    pub(super) fn follow(span: &Span, headers: &BTreeMap<String, String>) {
        if let Some(parent) = read(headers) {
            // Setting the parent fails if no tracer is installed; then there is no trace to join.
            let _ = span.set_parent(Context::new().with_remote_span_context(parent));
        }
    }

    /// Links a span to the span that these headers name, if they name one.
    pub(super) fn link(span: &Span, headers: &BTreeMap<String, String>) {
        if let Some(linked) = read(headers) {
            span.add_link(linked);
        }
    }

    /// Reads the trace context from stored headers, which any program may have written. An invalid trace context is
    /// ignored.
    fn read(headers: &BTreeMap<String, String>) -> Option<SpanContext> {
        let mut parts = headers.get(TRACEPARENT)?.split('-');
        let (version, trace, id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
        // Future versions may have more parts after the four parts read here; `ff` is never a version.
        if !hex(version, 2) || version == "ff" || version == "00" && parts.next().is_some() {
            return None;
        }
        if !hex(trace, 32) || !hex(id, 16) || !hex(flags, 2) {
            return None;
        }
        let state = headers.get(TRACESTATE).and_then(|state| state.parse::<TraceState>().ok());
        let context = SpanContext::new(
            TraceId::from_hex(trace).ok()?,
            SpanId::from_hex(id).ok()?,
            TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
            true,
            state.unwrap_or_default(),
        );
        context.is_valid().then_some(context)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn read_text(text: &str) -> Option<SpanContext> {
            read(&BTreeMap::from([(TRACEPARENT.to_owned(), text.to_owned())]))
        }

        #[test]
        fn only_w3c_trace_contexts_are_read() {
            const ID: &str = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
            let read = read_text(&format!("00-{ID}-01")).unwrap();
            assert!(read.is_sampled() && read.is_remote());
            assert_eq!(format!("{}-{}", read.trace_id(), read.span_id()), ID);
            assert!(read_text(&format!("01-{ID}-00-more")).is_some_and(|read| !read.is_sampled()));
            let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01".to_owned();
            for text in [
                format!("00-{ID}-01-more"),
                format!("ff-{ID}-01"),
                format!("00-{ID}"),
                format!("00-+{}-01", &ID[1..]),
                format!("00-☃{ID}-01"),
                zero,
                String::new(),
            ] {
                assert_eq!(read_text(&text), None, "{text}");
            }
        }
    }
}

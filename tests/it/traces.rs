//! Tests the trace of a save. The trace is stored with the messages of the save, continued by their delivery, and sent
//! to their receivers.

use std::sync::Arc;

use crate::flow::{Flow, Received};
use crate::receiving::{Scene, cloud_event};
use crate::support::{Added, Order, Recorder, TestDatabase, is_empty};
use document_outbox::{
    DeliveryOrder, DocumentRef, InlineDispatcher, Mode, RetryPolicy, Store,
    deliver::{Deliver, HandlerError, Handlers, Outcome, Router},
    dispatch::{Processed, Processor, ProcessorSettings},
    store::{Inserted, Receipt},
};
use mongodb::bson::Document;
use opentelemetry::{
    Value,
    trace::{SpanKind, Status, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};
use tracing_subscriber::layer::SubscriberExt;

/// The spans that have ended on this thread, in order of their ends.
struct Spans {
    exporter: InMemorySpanExporter,
    _provider: SdkTracerProvider,
    _subscriber: tracing::subscriber::DefaultGuard,
}

impl Spans {
    fn begin() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        let subscriber = tracing::subscriber::set_default(subscriber);
        Self { exporter, _provider: provider, _subscriber: subscriber }
    }

    fn named(&self, name: &str) -> Vec<SpanData> {
        let mut spans = self.exporter.get_finished_spans().unwrap();
        spans.retain(|span| span.name == name);
        spans
    }

    /// Returns the only span with this name.
    fn only(&self, name: &str) -> SpanData {
        let mut spans = self.named(name);
        assert_eq!(spans.len(), 1, "{name} among {:?}", self.names());
        spans.remove(0)
    }

    fn names(&self) -> Vec<String> {
        self.exporter.get_finished_spans().unwrap().into_iter().map(|span| span.name.into()).collect()
    }
}

fn traceparent(span: &SpanData) -> String {
    let context = &span.span_context;
    format!("00-{}-{}-01", context.trace_id(), context.span_id())
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    found.map(|attribute| match &attribute.value {
        Value::String(text) => text.to_string(),
        other => other.to_string(),
    })
}

fn is_child(span: &SpanData, parent: &SpanData) -> bool {
    span.span_context.trace_id() == parent.span_context.trace_id()
        && span.parent_span_id == parent.span_context.span_id()
}

/// Whether a span begins a new trace and is linked only to the trace with this `traceparent`.
fn links_to(span: &SpanData, stored: &str) -> bool {
    let links: Vec<_> = span.links.iter().map(|link| &link.span_context).collect();
    let [linked] = links[..] else { return false };
    format!("00-{}-{}-01", linked.trace_id(), linked.span_id()) == stored
        && linked.trace_id() != span.span_context.trace_id()
}

fn placed(id: &str, amounts: impl IntoIterator<Item = i64>) -> Order {
    let mut order = Order::new(id);
    amounts.into_iter().for_each(|amount| order.add(amount));
    order
}

async fn insert(orders: &Store<Order>, order: Order) -> Receipt {
    match orders.insert(order).await.unwrap() {
        Inserted::Applied(_, receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

fn header(entry: &Document, name: &str) -> Option<String> {
    entry.get_document("headers").ok()?.get_str(name).ok().map(str::to_owned)
}

fn no_quick_tries() -> RetryPolicy {
    RetryPolicy::default().with(|retry| retry.quick_tries = 0)
}

fn worker(test: &TestDatabase, deliver: impl Deliver) -> Processor {
    let settings = ProcessorSettings::default().with(|settings| settings.retry = no_quick_tries());
    Processor::new(test.client.clone(), Arc::new(deliver), settings)
}

async fn process(test: &TestDatabase, worker: &Processor, id: &str, ordering: DeliveryOrder) -> Processed {
    let document = DocumentRef::by_id(test.orders().namespace(), id);
    worker.process(&document, ordering, &CancellationToken::new()).await.unwrap()
}

#[tokio::test]
async fn inline_deliveries_and_messages_share_the_saves_trace() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let spans = Spans::begin();
    let inline = InlineDispatcher::builder(&flow.test.client).mode(Mode::Await);
    let inline = inline.deliver_to(flow.rabbitmq("inline").await);
    let orders = flow.test.store(&inline);
    let order = placed("o-1", [7]);
    let id = order.outbox.iter().next().unwrap().id().to_string();
    insert(&orders, order).instrument(info_span!("request")).await;
    let message = receiver.wait(1).await.remove(0);

    let (request, save) = (spans.only("request"), spans.only("insert orders"));
    let (dispatch, send) = (spans.only("dispatch orders"), spans.only("send order.added"));
    assert!(is_child(&save, &request));
    assert!(is_child(&dispatch, &save));
    assert!(is_child(&send, &save));
    assert_eq!(message.headers()["traceparent"], traceparent(&send));
    assert_eq!(send.span_kind, SpanKind::Producer);
    assert_eq!(send.status, Status::Unset);
    let destination = format!("{}:order.added", flow.messages());
    for (name, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.name", "send"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", &destination),
        ("messaging.rabbitmq.destination.routing_key", "order.added"),
        ("messaging.message.id", &id),
    ] {
        assert_eq!(attribute(&send, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(attribute(&save, "messaging.batch.message_count").as_deref(), Some("1"));
    assert_eq!(attribute(&save, "db.system.name").as_deref(), Some("mongodb"));
    flow.end().await;
}

#[tokio::test]
async fn a_rescues_own_trace_links_the_stored_one() {
    const OWN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let spans = Spans::begin();
    let orders = flow.test.store(&InlineDispatcher::off(&flow.test.client));
    insert(&orders, placed("o-1", [1])).await;
    let mut order = placed("o-2", []);
    order.outbox.send(Added { amount: 2 }).header("traceparent", OWN).header("tracestate", "a=b");
    insert(&orders, order).await;

    let saved = traceparent(&spans.named("insert orders")[0]);
    let entry = flow.test.outbox("o-1").await.remove(0);
    assert_eq!(header(&entry, "traceparent"), Some(saved.clone()));
    let own = flow.test.outbox("o-2").await.remove(0);
    assert_eq!(header(&own, "traceparent").as_deref(), Some(OWN), "its sender's stays");
    assert_eq!(header(&own, "tracestate").as_deref(), Some("a=b"));

    let worker = worker(&flow.test, flow.rabbitmq("worker").await);
    for id in ["o-1", "o-2"] {
        assert_eq!(process(&flow.test, &worker, id, DeliveryOrder::Ordered).await, Processed::Done);
    }
    let received = receiver.wait(2).await;
    let (dispatched, sent) = (spans.named("dispatch orders"), spans.named("send order.added"));
    for ((send, dispatch), (stored, message)) in
        sent.iter().zip(&dispatched).zip([saved.as_str(), OWN].into_iter().zip(&received))
    {
        assert!(is_child(send, dispatch));
        assert!(links_to(send, stored), "{send:?}");
        assert_eq!(message.headers()["traceparent"], traceparent(send));
        assert_eq!(message.headers().get("tracestate"), None, "the state belongs to the other trace");
    }
    assert_eq!(received.iter().map(Received::amount).collect::<Vec<_>>(), [1, 2]);
    flow.end().await;
}

/// The span of a save ends when the save is durable, however long the delivery takes.
#[tokio::test]
async fn a_saves_span_ends_before_its_delivery() {
    let test = TestDatabase::create().await;
    let spans = Spans::begin();
    let recorder = Recorder::held();
    let orders = test.store(&InlineDispatcher::builder(&test.client).deliver_to(recorder.clone()));
    insert(&orders, placed("o-1", [1])).await;
    recorder.wait_tried(1).await;
    assert_eq!(spans.names(), ["insert orders"]);
    recorder.let_through(1);
    test.wait_until("o-1", is_empty).await;
    test.drop().await;
}

/// In an unordered document several messages are delivered at a time.
#[tokio::test]
async fn handlers_run_inside_their_own_messages_span() {
    let test = TestDatabase::create().await;
    let spans = Spans::begin();
    let handlers = Handlers::builder().on("add", |message: Added, envelope| async move {
        info_span!("handle", id = %envelope.id).in_scope(|| ());
        match message.amount {
            2 => Err(HandlerError::permanent("never")),
            _ => Ok(()),
        }
    });
    let router = Router::new(Recorder::default()).handlers(handlers.build().unwrap());
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Off).deliver_to(router.clone());
    let receipt = insert(&test.store(&inline), placed("o-1", 1..=3)).await;
    process(&test, &worker(&test, router), "o-1", DeliveryOrder::Unordered).await;

    let handled = spans.named("handle");
    assert_eq!(handled.len(), 3);
    let mut failed = Vec::new();
    for message in spans.named("process order.added") {
        assert_eq!(message.span_kind, SpanKind::Consumer);
        let id = attribute(&message, "messaging.message.id");
        let inside: Vec<_> = handled.iter().filter(|span| is_child(span, &message)).collect();
        assert_eq!(inside.len(), 1);
        assert_eq!(attribute(inside[0], "id"), id);
        if matches!(message.status, Status::Error { .. }) {
            failed.push((id.unwrap(), attribute(&message, "error.type")));
        }
    }
    assert_eq!(failed, [(receipt.messages[1].to_string(), Some("permanent".to_owned()))]);
    test.drop().await;
}

#[tokio::test]
async fn spans_name_the_error_of_their_failure() {
    let test = TestDatabase::create().await;
    let spans = Spans::begin();
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("no".into())]);
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).retry(no_quick_tries());
    let orders = test.store(&inline.deliver_to(recorder));
    insert(&orders, placed("o-1", [1])).await;
    let failed = |span: SpanData| {
        (matches!(span.status, Status::Error { .. }), attribute(&span, "error.type").unwrap_or_default())
    };
    assert_eq!(failed(spans.only("send order.added")), (true, "transient".into()));
    assert_eq!(failed(spans.only("insert orders")), (false, String::new()));
    assert!(matches!(orders.insert(placed("o-1", [2])).await.unwrap(), Inserted::Exists(_)));
    assert_eq!(failed(spans.named("insert orders").remove(1)), (true, "conflict".into()));
    test.drop().await;
}

/// The trace of a save continues through the receiver, into the save of its aggregate.
#[tokio::test]
async fn a_received_message_continues_its_senders_trace() {
    let scene = Scene::begin().await;
    let mut receiver = scene.start(scene.stocks_receiving(), scene.settings()).await;
    let spans = Spans::begin();
    let sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = br#"{"sku":"a","quantity":1}"#;
    let event = cloud_event(uuid::Uuid::now_v7(), "stock.requested", "a");
    let mut headers = event.headers().clone().unwrap();
    headers.insert("traceparent".into(), lapin::types::AMQPValue::LongString(sent.into()));
    scene.publish(event.with_headers(headers), "stock.requested", body).await;
    receiver.applied(1).await;
    receiver.stop().await;

    let process = spans.only("process stock.requested");
    assert_eq!(process.span_kind, SpanKind::Consumer);
    assert_eq!(process.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(process.parent_span_id.to_string(), "b7ad6b7169203331");
    assert_eq!(attribute(&process, "messaging.destination.name"), Some(scene.queue()));
    assert!(is_child(&spans.only("insert stocks"), &process));
    scene.end().await;
}

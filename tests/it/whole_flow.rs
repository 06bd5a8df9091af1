//! Tests an application, a rescuer, a dispatcher and a broker together, with a receiver that is independent
//! of the library.

use std::{collections::BTreeMap, time::Duration};

use crate::flow::{Flow, Heard, Received, WORKER, soon};
use crate::support::{LONG, Order, is_empty};
use document_outbox::{
    InlineDispatcher, Message, RetryPolicy, Store, command::Reason, observe::Event, store::Inserted,
};
use futures::StreamExt;
use mongodb::{
    bson::{Bson, DateTime, Document, Uuid, doc, oid::ObjectId},
    change_stream::{ChangeStream, event::ChangeStreamEvent},
};
use outbox_dispatcher::{DispatcherEvent, Left};
use outbox_rescuer::{RescueEvent, StartedFrom};
use serde::{Deserialize, Serialize};

const DELAY: Duration = Duration::from_secs(1);

/// Returns the minimal entry that a writer in any language has to push.
fn minimal(amount: i64) -> Document {
    doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": amount } }
}

fn placed(id: &str, amounts: impl IntoIterator<Item = i64>) -> Order {
    let mut order = Order::new(id);
    amounts.into_iter().for_each(|amount| order.add(amount));
    order
}

async fn insert(orders: &Store<Order>, order: Order) {
    let inserted = orders.insert(order).await.unwrap();
    assert!(matches!(inserted, Inserted::Applied(..)), "{inserted:?}");
}

fn patient() -> RetryPolicy {
    let wait = Duration::from_millis(200);
    RetryPolicy::default().with(|retry| {
        retry.max_attempts = 10_000;
        retry.backoff_min = wait;
        retry.backoff_max = wait;
    })
}

fn queued(event: &RescueEvent) -> Option<(Bson, Reason)> {
    match event {
        RescueEvent::Queued { document, reason } => Some((document.id().clone(), *reason)),
        _ => None,
    }
}

/// The times at which the outbox was filled and claimed, according to the server's own records.
struct Recorded {
    filled: DateTime,
    claimed: DateTime,
}

impl Recorded {
    /// Begins to watch a document before it is written.
    async fn watch(flow: &Flow, id: &str) -> impl Future<Output = Self> + use<> {
        let only = vec![doc! { "$match": { "documentKey._id": id } }];
        let mut changes = flow.test.orders().watch().pipeline(only).await.unwrap();
        let read = async move {
            let mut filled = None;
            while let Some(change) = changes.next().await {
                let change = change.unwrap();
                let at = change.wall_time.unwrap();
                let updated = change.update_description.map(|update| update.updated_fields);
                let claim = |name: &String| name.ends_with(".claimed_by");
                match filled {
                    None => filled = Some(at),
                    Some(filled) if updated.is_some_and(|fields| fields.keys().any(claim)) => {
                        return Self { filled, claimed: at };
                    }
                    Some(_) => {}
                }
            }
            panic!("the changes ended");
        };
        async move { soon("the document to be claimed", read).await }
    }

    /// Checks that the delivery began no earlier than the delay. 100 ms less are accepted, because the rescuer knows
    /// the server's time only to within half a round trip.
    fn came_after(&self, delay: Duration) {
        let waited = self.claimed.timestamp_millis() - self.filled.timestamp_millis();
        let delay = i64::try_from(delay.as_millis()).unwrap();
        assert!(waited >= delay - 100, "claimed after {waited} ms");
    }
}

/// A foreign writer may `$push` an entry with only `id`, `type` and `payload`, and this entry is delivered like all
/// others. The entry is not delivered before the delay, because until then it could belong to an inline dispatcher.
#[tokio::test]
async fn a_minimal_foreign_entry_arrives_and_is_cleared() {
    let flow = Flow::begin().await;
    flow.test.orders().insert_one(doc! { "_id": "o-1" }).await.unwrap();
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(patient()).await;
    let mut rescuer = flow.rescuer(flow.rescuer_settings(2 * DELAY)).await;

    let recorded = Recorded::watch(&flow, "o-1").await;
    let push = doc! { "$push": { "outbox": minimal(7) } };
    flow.test.orders().update_one(doc! { "_id": "o-1" }, push).await.unwrap();
    assert_eq!(rescuer.wait("a command", queued).await, ("o-1".into(), Reason::Stream));
    assert_eq!(receiver.wait(1).await[0].amount(), 7);
    recorded.await.came_after(2 * DELAY);
    flow.test.wait_until("o-1", is_empty).await;

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

/// A foreign writer's ids contain a time from a clock that is not the server's.
#[tokio::test]
async fn a_foreign_clock_ahead_does_not_prevent_rescue() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(patient()).await;
    let mut rescuer = flow.rescuer(flow.rescuer_settings(DELAY)).await;
    let recorded = Recorded::watch(&flow, "o-1").await;
    let mut entry = minimal(7);
    let ahead = std::time::UNIX_EPOCH.elapsed().unwrap() + DELAY;
    let ahead = uuid::Timestamp::from_unix(uuid::NoContext, ahead.as_secs(), ahead.subsec_nanos());
    entry.insert("id", Uuid::from_bytes(uuid::Uuid::new_v7(ahead).into_bytes()));
    let foreign = doc! { "_id": "o-1", "outbox": [entry] };
    flow.test.orders().insert_one(foreign).await.unwrap();
    assert_eq!(rescuer.wait("a command", queued).await, ("o-1".into(), Reason::Stream));
    assert_eq!(receiver.wait(1).await[0].amount(), 7);
    recorded.await.came_after(DELAY);
    flow.test.wait_until("o-1", is_empty).await;

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

/// A command is only a hint and may be lost. The document still has the messages, and the sweep finds these messages.
#[tokio::test]
async fn the_sweep_finds_messages_of_lost_commands() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let settings = flow.rescuer_settings(2 * DELAY).with(|settings| {
        settings.full_sweep_interval = DELAY;
        settings.requeue_pause = DELAY;
    });
    let mut rescuer = flow.rescuer(settings).await;
    let recorded = Recorded::watch(&flow, "o-1").await;
    // The entry is as old as the time in its id. An entry without any time counts as old in the full sweep.
    let mut entry = minimal(7);
    entry.insert("id", Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes()));
    let foreign = doc! { "_id": "o-1", "outbox": [entry] };
    flow.test.orders().insert_one(foreign).await.unwrap();

    rescuer.wait("the first command", queued).await;
    assert!(flow.lose_commands().await >= 1);
    let swept = |event: &RescueEvent| queued(event).filter(|(_, reason)| *reason == Reason::Sweep);
    rescuer.wait("a command of the sweep", swept).await;
    flow.lose_commands().await;
    assert_eq!(flow.test.outbox("o-1").await.len(), 1, "no receiver has it yet");
    let mut worker = flow.dispatcher(patient()).await;
    let taken = |event: &DispatcherEvent| match event {
        DispatcherEvent::Taken { reason, .. } => Some(*reason),
        _ => None,
    };
    assert_eq!(worker.wait("a command", taken).await, Reason::Sweep);
    assert_eq!(receiver.wait(1).await[0].amount(), 7);
    recorded.await.came_after(2 * DELAY);
    flow.test.wait_until("o-1", is_empty).await;

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

#[tokio::test]
async fn ids_of_any_type_survive_the_whole_flow() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(patient()).await;
    let mut rescuer = flow.rescuer(flow.rescuer_settings(DELAY)).await;
    let ids: Vec<Bson> = vec![
        "o-1".into(),
        "".into(),
        "a\"b$c.d \u{0} ☃ {\"$oid\": 1}\n".into(),
        ObjectId::new().into(),
        Uuid::new().into(),
        Bson::Int32(-1),
        Bson::Int64(1 << 60),
        Bson::Double(0.1),
        Bson::Double(f64::NAN),
        true.into(),
        Bson::Null,
        Bson::MinKey,
        DateTime::from_millis(-1).into(),
        Bson::Timestamp(mongodb::bson::Timestamp { time: 1, increment: 2 }),
        Bson::Decimal128("12345678901234567890.5".parse().unwrap()),
        Bson::Binary(mongodb::bson::Binary {
            subtype: mongodb::bson::spec::BinarySubtype::Generic,
            bytes: vec![0, 255],
        }),
        doc! { "tenant": 7, "nested": { "a": ["b", {}] } }.into(),
    ];
    for (nth, id) in ids.iter().enumerate() {
        let entry = minimal(i64::try_from(nth).unwrap());
        let document = doc! { "_id": id, "outbox": [entry] };
        flow.test.orders().insert_one(document).await.unwrap();
    }
    let mut received = receiver.wait(ids.len()).await;
    received.sort_by_key(Received::amount);
    for (nth, (id, message)) in ids.iter().zip(&received).enumerate() {
        assert_eq!(message.amount(), i64::try_from(nth).unwrap(), "each once");
        let document = document_outbox::DocumentRef::by_id(flow.test.orders().namespace(), id.clone());
        assert_eq!(message.subject(), document.subject(), "{id:?}");
    }
    flow.test.wait_until_all_are_empty().await;
    let mut by_stream = 0;
    while by_stream < ids.len() {
        let (_, reason) = rescuer.wait("a command", queued).await;
        by_stream += usize::from(reason == Reason::Stream);
    }

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

/// P7: after a collection was dropped and created again, the rescuer sweeps, watches and continues.
#[tokio::test]
async fn messages_of_a_recreated_collection_still_arrive() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(patient()).await;
    let rescuer = flow.rescuer(flow.rescuer_settings(DELAY)).await;
    let orders = flow.test.store(&InlineDispatcher::off(&flow.test.client));
    insert(&orders, placed("before", [1])).await;
    receiver.wait(1).await;

    flow.test.orders().drop().await.unwrap();
    let foreign = |id: &str, amount| doc! { "_id": id, "outbox": [minimal(amount)] };
    flow.test.orders().insert_one(foreign("foreign", 2)).await.unwrap();
    receiver.wait(2).await;
    orders.ensure_indexes().await.unwrap();
    insert(&orders, placed("after", [3])).await;
    let amounts: Vec<_> = receiver.wait(3).await.iter().map(Received::amount).collect();
    assert_eq!(amounts, [1, 2, 3]);
    flow.test.wait_until("after", is_empty).await;

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

/// P7: *a lost position loses nothing*. A restart with the saved position loses no message either.
#[tokio::test]
async fn a_restarted_rescuer_loses_no_message_or_position() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(patient()).await;
    let foreign = |amount: i64| doc! { "_id": format!("o-{amount}"), "outbox": [minimal(amount)] };
    let orders = flow.test.orders();
    let settings = || flow.rescuer_settings(DELAY);

    let rescuer = flow.rescuer(settings()).await;
    assert_eq!(rescuer.from, StartedFrom::Now);
    orders.insert_one(foreign(1)).await.unwrap();
    receiver.wait(1).await;
    rescuer.stop().await;
    orders.insert_one(foreign(2)).await.unwrap();
    let mut rescuer = flow.rescuer(settings()).await;
    assert_eq!(rescuer.from, StartedFrom::Position);
    receiver.wait(2).await;
    orders.insert_one(foreign(3)).await.unwrap();
    let holding = |event: &RescueEvent| matches!(event, RescueEvent::Holding { .. }).then_some(());
    rescuer.wait("the change to be held", holding).await;
    rescuer.kill().await;
    let rescuer = flow.rescuer(settings()).await;
    assert_eq!(rescuer.from, StartedFrom::Position);
    receiver.wait(3).await;

    for amount in 1..=3 {
        flow.test.wait_until(format!("o-{amount}"), is_empty).await;
    }
    let amounts: Vec<_> = receiver.all().iter().map(Received::amount).collect();
    assert_eq!(amounts, [1, 2, 3], "each once");
    let positions = flow.state().collection::<Document>("positions");
    assert_eq!(positions.count_documents(doc! {}).await.unwrap(), 1);

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

/// P2 and P4 without an inline dispatcher: messages are delivered in order, and exactly once because there are no
/// failures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_inline_dispatch_all_messages_arrive_in_order() {
    const DOCUMENTS: i64 = 500;
    const MESSAGES: i64 = 4;
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(patient()).await;
    let rescuer = flow.rescuer(flow.rescuer_settings(DELAY)).await;
    let orders = flow.test.store(&InlineDispatcher::off(&flow.test.client));
    let saves = (0..DOCUMENTS).map(async |nth| {
        let id = format!("o-{nth}");
        insert(&orders, placed(&id, 1..MESSAGES)).await;
        orders.update(&id, |order| order.add(MESSAGES)).await.unwrap();
    });
    futures::stream::iter(saves).buffer_unordered(32).collect::<Vec<_>>().await;
    let received = receiver.wait(usize::try_from(DOCUMENTS * MESSAGES).unwrap()).await;
    flow.test.wait_until_all_are_empty().await;

    let mut arrived: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for message in &received {
        assert_eq!(message.app_id(), WORKER);
        arrived.entry(message.subject()).or_default().push(message.amount());
    }
    assert_eq!(arrived.len(), usize::try_from(DOCUMENTS).unwrap());
    let wanted: Vec<_> = (1..=MESSAGES).collect();
    for (document, amounts) in arrived {
        assert_eq!(amounts, wanted, "{document}");
    }
    assert_eq!(receiver.all().len(), received.len(), "nothing came after the last outbox was empty");

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

/// A message with every kind of value.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Shipped {
    parcel: uuid::Uuid,
    count: i32,
    total: i64,
    weight: f64,
    at: DateTime,
    label: String,
    note: Option<String>,
    lines: Vec<BTreeMap<String, u8>>,
    #[serde(with = "serde_bytes")]
    code: Vec<u8>,
}

impl Message for Shipped {
    const TYPE: &'static str = "order.shipped";
    const SCHEMA: Option<&'static str> = Some("https://example.test/order.shipped");
}

fn shipped() -> Shipped {
    Shipped {
        parcel: uuid::Uuid::now_v7(),
        count: -1,
        total: 1 << 60,
        weight: 2.0,
        at: DateTime::from_millis(1_700_000_000_120),
        label: "a\"b\\c ☃\n".into(),
        note: None,
        lines: vec![BTreeMap::from([("z".into(), 1), ("a".into(), 2)]), BTreeMap::new()],
        code: vec![0, 255, 7],
    }
}

/// Returns the entry from the first change that has one, as the save stored it, without its claim.
async fn stored_entry(changes: &mut ChangeStream<ChangeStreamEvent<Document>>) -> Document {
    let inserted = soon("the insert", changes.next()).await.unwrap().unwrap().full_document.unwrap();
    let outbox = inserted.get_array("outbox").unwrap();
    let mut entry = outbox[0].as_document().unwrap().clone();
    for of_the_claim in ["claimed_by", "available_at"] {
        entry.remove(of_the_claim).unwrap();
    }
    entry
}

/// The receiver of an entry gets the same bytes, whichever process delivers the entry.
#[tokio::test]
async fn inline_rescued_and_replayed_deliveries_are_the_same() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let mut changes = flow.test.orders().watch().await.unwrap();
    let inline = InlineDispatcher::builder(&flow.test.client).deliver_to(flow.rabbitmq("inline").await);
    let mut order = Order::new("o-1");
    order.outbox.send(shipped()).header("tenant", "north ☃").header("x-empty", "");
    insert(&flow.test.store(&inline), order).await;
    receiver.wait(1).await;
    let entry = stored_entry(&mut changes).await;
    flow.test.wait_until("o-1", is_empty).await;

    let worker = flow.dispatcher(patient()).await;
    let mut rescuer = flow.rescuer(flow.rescuer_settings(DELAY)).await;
    let push = |entry: Document| doc! { "$push": { "outbox": entry } };
    let orders = flow.test.orders();
    orders.update_one(doc! { "_id": "o-1" }, push(entry.clone())).await.unwrap();
    assert_eq!(rescuer.wait("a command", queued).await, ("o-1".into(), Reason::Stream));
    receiver.wait(2).await;
    flow.test.wait_until("o-1", is_empty).await;

    let mut dead = entry.clone();
    dead.extend(doc! {
        "attempts": 10, "last_error": "no", "dead_at": DateTime::now(), "dead_reason": "attempts_exhausted",
    });
    orders.update_one(doc! { "_id": "o-1" }, push(dead)).await.unwrap();
    let id = entry.get("id").unwrap();
    let replay = doc! {
        "$currentDate": { "outbox.$[e].available_at": true },
        "$set": { "outbox.$[e].attempts": 0, "outbox.$[e].claims": 0 },
        "$unset": { "outbox.$[e].dead_at": "", "outbox.$[e].dead_reason": "", "outbox.$[e].last_error": "" },
    };
    let of_the_dead = vec![doc! { "e.id": id, "e.dead_at": { "$exists": true } }];
    orders.update_one(doc! { "_id": "o-1" }, replay).array_filters(of_the_dead).await.unwrap();
    let received = receiver.wait(3).await;

    let by: Vec<String> = received.iter().map(Received::app_id).collect();
    assert_eq!(by, ["inline", WORKER, WORKER]);
    assert_eq!(received[0].headers()["cloudEvents:subject"], "o-1");
    for again in &received[1..] {
        let first = &received[0];
        assert_eq!(again.bytes, first.bytes, "{} and {}", again.body, first.body);
        assert_eq!(again.headers(), first.headers());
        assert_eq!(again.routing_key, first.routing_key);
        let unsigned = |message: &Received| message.properties.clone().with_app_id("".into());
        assert_eq!(unsigned(again), unsigned(first));
    }

    flow.test.wait_until("o-1", is_empty).await;
    rescuer.stop().await;
    worker.running.stop().await;
    inline.close(LONG).await;
    flow.end().await;
}

/// The message on the wire is the same, whichever process delivers the message.
#[tokio::test]
async fn a_rescued_message_keeps_its_headers_and_trace() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(patient()).await;
    let rescuer = flow.rescuer(flow.rescuer_settings(DELAY)).await;
    let orders = flow.test.store(&InlineDispatcher::off(&flow.test.client));
    let mut order = Order::new("o-1");
    let sent = order.outbox.send(crate::support::Added { amount: 7 });
    sent.header("tenant", "north ☃").header("traceparent", TRACE);
    let id = sent.id().to_string();
    insert(&orders, order).await;
    let entry = flow.test.outbox("o-1").await.remove(0);
    let created_at = entry.get_datetime("created_at").unwrap().try_to_rfc3339_string().unwrap();

    let message = receiver.wait(1).await.remove(0);
    assert_eq!(message.routing_key, "order.added");
    assert_eq!(message.app_id(), WORKER);
    assert_eq!(message.message_id(), id);
    let properties = &message.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    assert_eq!(text(properties.kind()).as_deref(), Some("order.added"));
    assert_eq!(text(properties.content_type()).as_deref(), Some("application/json"));
    assert_eq!(*properties.delivery_mode(), Some(2), "persistent");
    assert_eq!(message.body, serde_json::json!({ "amount": 7 }));
    let wanted = [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", &id),
        ("cloudEvents:type", "order.added"),
        ("cloudEvents:source", &format!("/{}/orders", flow.name())),
        ("cloudEvents:subject", "o-1"),
        ("tenant", "north ☃"),
        ("traceparent", TRACE),
    ];
    let mut headers = message.headers();
    let time = headers.remove("cloudEvents:time").unwrap();
    let parsed = DateTime::parse_rfc3339_str(&time).unwrap();
    assert_eq!(parsed.try_to_rfc3339_string().unwrap(), created_at);
    let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(headers, BTreeMap::from(wanted));

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

/// A message that inline delivery could not deliver goes to a worker at once, without a rescuer.
#[tokio::test]
async fn an_unreceivable_message_waits_for_a_receiver() {
    let flow = Flow::begin().await;
    flow.unbind().await;
    let receiver = flow.receiver().await;
    let inline = InlineDispatcher::builder(&flow.test.client)
        .retry(patient())
        .hand_off(flow.command_sender().await)
        .deliver_to(flow.rabbitmq("inline").await);
    let mut events = Heard::from(inline.subscribe());
    let orders = flow.test.store(&inline);
    insert(&orders, placed("o-1", [1, 2])).await;
    let failed = |event: &Event| match event {
        Event::Failed { error, .. } => Some(error.clone()),
        _ => None,
    };
    let error = events.wait("the failure", failed).await;
    assert!(error.contains("unroutable"), "{error}");
    let handed_off = |event: &Event| matches!(event, Event::HandedOff { .. }).then_some(());
    events.wait("the hand-off", handed_off).await;

    let mut worker = flow.dispatcher(patient()).await;
    let taken = |event: &DispatcherEvent| match event {
        DispatcherEvent::Taken { document, reason } => Some((document.subject(), *reason)),
        _ => None,
    };
    assert_eq!(worker.wait("the command", taken).await, ("o-1".into(), Reason::Handoff));
    worker.messages.wait("the worker to fail too", failed).await;
    let kept = |event: &DispatcherEvent| match event {
        DispatcherEvent::Kept { why: Left::Held(_), .. } => Some(()),
        _ => None,
    };
    worker.wait("the command to be kept", kept).await;
    assert!(receiver.all().is_empty());
    flow.bind().await;
    let received = receiver.wait(2).await;
    let amounts: Vec<_> = received.iter().map(Received::amount).collect();
    assert_eq!(amounts, [1, 2]);
    assert!(received.iter().all(|message| message.app_id() == WORKER));
    let finished = |event: &DispatcherEvent| matches!(event, DispatcherEvent::Finished { .. }).then_some(());
    worker.wait("the command to be finished", finished).await;
    assert!(flow.test.outbox("o-1").await.is_empty());

    worker.running.stop().await;
    flow.end().await;
}

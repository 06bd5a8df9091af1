//! Tests the whole system while its broker is gone, takes no messages, or closes the channel.
//!
//! Most tests have their own RabbitMQ. The last tests share a RabbitMQ with other tests, and have only their
//! own exchange and user.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::flow::{Flow, Heard, Received, Rescue, Worker, soon};
use crate::private_broker::PrivateBroker;
use crate::restricted::RestrictedUser;
use crate::support::{LONG, Order};
use document_outbox::{
    InlineDispatcher, Message, Mode, RetryPolicy,
    amqp::State,
    deliver::RabbitMq,
    dispatch::{Dispatch, Disposition},
    observe::Event,
    store::Inserted,
};
use mongodb::bson::doc;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const DOCUMENTS: i64 = 10;

/// A retry policy whose attempts all end within a second, without the quick retries that could hide an
/// attempt.
fn short_retry() -> RetryPolicy {
    RetryPolicy::default().with(|retry| {
        retry.max_attempts = 4;
        retry.backoff_min = Duration::from_millis(50);
        retry.backoff_max = Duration::from_millis(200);
        retry.quick_tries = 0;
    })
}

/// The whole running system: an application that saves continuously, a worker and a rescuer.
struct System {
    flow: Flow,
    rabbitmq: RabbitMq,
    inline: InlineDispatcher,
    messages: Heard<Event>,
    worker: Worker,
    rescuer: Rescue,
    saves: Saves,
}

impl System {
    async fn start(flow: Flow, retry: RetryPolicy) -> Self {
        let rabbitmq = flow.rabbitmq("inline").await;
        let inline = InlineDispatcher::builder(&flow.test.client)
            .retry(retry.clone())
            .inline_lease(Duration::from_secs(1))
            .hand_off(flow.command_sender().await)
            .deliver_to(rabbitmq.clone());
        let messages = Heard::from(inline.subscribe());
        let worker = flow.dispatcher(retry).await;
        let rescuer = flow.rescuer(flow.rescuer_settings(Duration::from_secs(2))).await;
        let saves = Saves::begin(&flow, &inline).await;
        saves.made(50).await;
        Self { flow, rabbitmq, inline, messages, worker, rescuer, saves }
    }

    /// Stops saving, and checks that every saved message is in flight or has arrived and that none is dead.
    async fn everything_arrives(mut self) -> Vec<Event> {
        let saved = self.saves.end().await;
        self.flow.test.wait_until_all_are_empty().await;
        let receiver = self.flow.receiver().await;
        let all = |received: &[Received]| arrived(received).values().map(Vec::len).sum::<usize>() >= saved;
        let received = receiver.wait_until("every message", all).await;
        for (document, amounts) in arrived(&received) {
            let wanted: Vec<_> = (1..).take(amounts.len()).collect();
            assert_eq!(amounts, wanted, "{document}");
        }
        self.inline.close(LONG).await;
        self.rabbitmq.close().await;
        self.rescuer.stop().await;
        self.worker.running.stop().await;
        let mut events = self.messages.rest();
        events.extend(self.worker.messages.rest());
        let died = events.iter().find(|event| matches!(event, Event::Died { .. }));
        assert_eq!(died, None);
        self.flow.end().await;
        events
    }
}

/// Returns the deliveries of each document without repeats. There can be repeats, because a broker that fails between
/// publish and confirm may get a message twice (P3 a).
fn arrived(received: &[Received]) -> BTreeMap<String, Vec<i64>> {
    let mut arrived = BTreeMap::<String, Vec<i64>>::new();
    for message in received {
        let amounts = arrived.entry(message.subject()).or_default();
        if !amounts.contains(&message.amount()) {
            amounts.push(message.amount());
        }
    }
    arrived
}

fn failed(events: &[Event]) -> Option<&Event> {
    events.iter().find(|event| matches!(event, Event::Failed { .. }))
}

/// An application that makes a hundred saves per second, one after another, each for a different document and
/// with one message.
struct Saves {
    made: watch::Receiver<usize>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Saves {
    async fn begin(flow: &Flow, inline: &InlineDispatcher) -> Self {
        let orders = flow.test.store(inline);
        for nth in 0..DOCUMENTS {
            let inserted = orders.insert(Order::new(&format!("o-{nth}"))).await.unwrap();
            assert!(matches!(inserted, Inserted::Applied(..)));
        }
        let stop = CancellationToken::new();
        let (count, made) = watch::channel(0);
        let until = stop.clone();
        let task = tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            for nth in 0i64.. {
                pace.tick().await;
                if until.is_cancelled() {
                    break;
                }
                let id = format!("o-{}", nth % DOCUMENTS);
                let saved = orders.update(&id, |order| order.add(nth / DOCUMENTS + 1)).await;
                saved.expect("a save never fails because of delivery");
                count.send_modify(|made| *made += 1);
            }
        });
        Self { made, stop, task }
    }

    /// Waits until `more` further saves were made.
    async fn made(&self, more: usize) {
        let mut made = self.made.clone();
        let enough = *made.borrow_and_update() + more;
        soon("the saves to continue", made.wait_for(|made| *made >= enough)).await.unwrap();
    }

    /// Stops saving and returns the number of saves.
    async fn end(&mut self) -> usize {
        self.stop.cancel();
        (&mut self.task).await.unwrap();
        *self.made.borrow()
    }
}

/// A deleted exchange is declared again (the broker closes the channel with 404). Messages that failed before
/// the exchange was declared again are retried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_closed_by_the_broker_loses_no_message() {
    let retry = short_retry().with(|retry| retry.max_attempts = 10_000);
    let mut system = System::start(Flow::begin().await, retry).await;
    for _ in 0..3 {
        system.flow.delete_exchange(system.flow.messages()).await;
        // Ignore failures of the earlier round.
        drop(system.messages.rest());
        let unroutable = |event: &Event| match event {
            Event::Failed { error, .. } => error.starts_with("unroutable").then_some(()),
            _ => None,
        };
        system.messages.wait("the exchange to be made again, without its queue", unroutable).await;
        system.flow.bind().await;
        system.saves.made(20).await;
    }
    system.everything_arrives().await;
}

#[derive(Serialize, Deserialize)]
struct InvoiceSent {
    amount: i64,
}

impl Message for InvoiceSent {
    const TYPE: &'static str = "invoice.sent";
}

/// Saves as many orders as invoices, all concurrently, with a user who has permission to publish only orders. After
/// that, one order per second is delivered by its own save. Every order arrives at most twice, and every invoice dies
/// without affecting the orders, with the broker's text as the reason.
async fn orders_beside_forbidden_invoices(pairs: usize, later: usize) {
    let name = format!("test-{}", uuid::Uuid::now_v7().simple());
    let user = RestrictedUser::create(&name, &crate::support::uri("OUTBOX_RABBITMQ_URI")).await;
    let flow = Flow::on(user.uri()).await;
    user.may_write(&flow.messages(), r"^order\\.").await;
    let retry = short_retry().with(|retry| retry.max_attempts = 3);
    let mut worker = flow.dispatcher(retry.clone()).await;
    let rabbitmq = flow.rabbitmq("inline").await;
    let inline = InlineDispatcher::builder(&flow.test.client)
        .mode(Mode::Await)
        .retry(retry)
        .hand_off(flow.command_sender().await)
        .deliver_to(rabbitmq.clone());
    let receiver = flow.receiver().await;
    let orders = flow.test.store(&inline);

    let saves = (0..2 * pairs).map(|nth| {
        let mut order = Order::new(&format!("o-{nth}"));
        if nth % 2 == 0 {
            order.add(1);
        } else {
            order.outbox.send(InvoiceSent { amount: 1 });
        }
        orders.insert(order)
    });
    for saved in futures::future::join_all(saves).await {
        assert!(matches!(saved, Ok(Inserted::Applied(..))));
    }
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    for nth in 0..later {
        every_second.tick().await;
        let mut order = Order::new(&format!("later-{nth}"));
        order.add(1);
        assert_eq!(delivered(orders.insert(order).await), [true], "later-{nth}");
    }

    let mut died = 0;
    let all_dead = |event: &Event| {
        died += usize::from(matches!(event, Event::Died { .. }));
        (died == pairs).then_some(())
    };
    worker.messages.wait("every invoice to die", all_dead).await;
    for nth in (1..2 * pairs).step_by(2) {
        let outbox = flow.test.outbox(format!("o-{nth}")).await;
        assert_eq!(outbox[0].get_str("dead_reason"), Ok("attempts_exhausted"));
        let error = outbox[0].get_str("last_error").unwrap();
        assert!(error.contains("access to topic 'invoice.sent'"), "{error}");
    }
    let received =
        receiver.wait_until("every order", |received| counts(received).len() >= pairs + later).await;
    assert!(received.iter().all(|message| message.routing_key == "order.added"));
    let counts = counts(&received);
    assert_eq!(counts.len(), pairs + later);
    assert!(counts.values().all(|count| *count <= 2), "{counts:?}");
    let later_ones = counts.iter().filter(|(document, _)| document.starts_with("later"));
    assert!(later_ones.clone().all(|(_, count)| *count == 1), "{counts:?}");

    inline.close(LONG).await;
    rabbitmq.close().await;
    worker.running.stop().await;
    flow.end().await;
}

/// Whether the save itself reported each of its messages as delivered.
fn delivered<T: std::fmt::Debug, E: std::fmt::Debug>(inserted: Result<Inserted<T>, E>) -> Vec<bool> {
    let Ok(Inserted::Applied(_, receipt)) = inserted else { panic!("{inserted:?}") };
    let Dispatch::Settled(messages) = receipt.dispatch else { panic!("{:?}", receipt.dispatch) };
    messages.iter().map(|(_, disposition)| *disposition == Disposition::Delivered).collect()
}

fn counts(received: &[Received]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for message in received {
        *counts.entry(message.subject()).or_default() += 1;
    }
    counts
}

/// P6 Independent, P3: a message that the broker refuses fails alone, and the messages published together
/// with it are repeated at most once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbidden_invoices_die_while_orders_are_delivered() {
    orders_beside_forbidden_invoices(15, 2).await;
}

/// Runs the same test long enough to show that orders are still delivered in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_orders_stay_in_time_among_forbidden_invoices() {
    orders_beside_forbidden_invoices(50, 300).await;
}

/// These tests stop, block or slow down a server.
mod outage {
    use super::*;

    /// P2 At least once, P6 Independent: no attempt is counted while the broker is unavailable, so an hour without
    /// RabbitMQ kills no message.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_long_broker_outage_kills_no_message() {
        let broker = PrivateBroker::start().await;
        let retry = short_retry();
        let system = System::start(Flow::on(&broker.uri).await, retry.clone()).await;
        broker.stop().await;
        let gone = Instant::now();
        system.saves.made(100).await;
        let entries = doc! { "outbox.attempts": { "$exists": true } };
        assert_eq!(system.flow.test.orders().count_documents(entries).await.unwrap(), 0);
        broker.start_again().await;
        assert!(gone.elapsed() > retry.longest_schedule(), "otherwise the test proves nothing");
        let events = system.everything_arrives().await;
        assert_eq!(failed(&events), None, "no attempt was counted");
    }

    /// P6: *a save never fails because of delivery*. A blocked connection costs no attempt either.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_blocked_connection_counts_no_attempt() {
        let broker = PrivateBroker::start().await;
        let mut flow = Flow::on(&broker.uri).await;
        flow.confirm_timeout = Duration::from_secs(1);
        let system = System::start(flow, short_retry()).await;
        broker.raise_alarm().await;
        let mut states = system.rabbitmq.subscribe();
        let blocked = states.wait_for(|state| matches!(state, State::Blocked { .. }));
        drop(soon("the connection to be blocked", blocked).await.unwrap());
        system.saves.made(100).await;
        broker.lift_alarm().await;
        let events = system.everything_arrives().await;
        assert_eq!(failed(&events), None, "no attempt was counted");
    }
}

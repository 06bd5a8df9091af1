//! Tests the saga of examples/adventure_works on real servers, in one process and over RabbitMQ: every path, with every
//! message delivered twice, and with the process killed after each step.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use document_outbox::{
    Aggregate, InlineDispatcher, Mode, Outbox, RetryPolicy, Store,
    deliver::Deliver,
    dispatch::{Processor, ProcessorSettings},
    receive::{Receiver, ReceiverSettings},
};
use futures::TryStreamExt;
use lapin::options::QueueDeleteOptions;
use mongodb::{
    Client, Database,
    bson::{Document, doc},
};
use outbox_dispatcher::Dispatcher;
use serde::{Deserialize, Serialize};

use crate::{
    dying::{DyingDeliverer, Plan, STEPS, ShopProcess, Step},
    flow::{Flow, Rescue, soon},
    support::{LONG, TestDatabase, uri},
};

#[path = "../../examples/adventure_works/main.rs"]
#[allow(dead_code, reason = "the tests use their part of the example")]
pub(crate) mod adventure_works;

use adventure_works::{
    fulfillment::OrderFulfillment,
    handlers,
    messages::OrderApproved,
    order::{OrderLine, OrderRequest, OrderStatus},
    stock::Stock,
    stores::Stores,
};

const ROUND: u32 = 20;
/// There are too few of these for any order.
const SCARCE: &str = "scarce";
/// The product of every order.
const PLENTY: [&str; 2] = ["frame", "wheel"];
const IN_PLENTY: u32 = 1_000;
/// Longer than any test.
const NEVER: Duration = Duration::from_hours(24);
/// The order whose confirmation arrives after its cancellation.
const LATE: &str = "confirmed-after-the-cancellation";

/// The paths of an order, by the order's id, with the status at the end.
const PATHS: [(&str, OrderStatus); 6] = [
    ("confirmed-then-approved", OrderStatus::Completed),
    ("approved-then-confirmed", OrderStatus::Completed),
    ("approved-before-created", OrderStatus::Completed),
    ("denied", OrderStatus::Cancelled),
    ("rejected", OrderStatus::Rejected),
    (LATE, OrderStatus::Cancelled),
];

/// A document that sends an approval before the order exists.
#[derive(Debug, Serialize, Deserialize, Aggregate)]
struct Clerk {
    #[serde(rename = "_id")]
    name: String,
    #[serde(skip)]
    outbox: Outbox,
}

fn line(product: &str, quantity: u32) -> OrderLine {
    OrderLine { product: product.into(), name: product.into(), cents: 100, quantity }
}

/// The lines of the order of a path.
fn lines(order: &str) -> Vec<OrderLine> {
    let second = if order == "denied" || order == LATE { SCARCE } else { PLENTY[1] };
    vec![line(PLENTY[0], ROUND), line(second, ROUND)]
}

/// A retry policy under which no message dies, however often its process is killed.
fn patient() -> RetryPolicy {
    RetryPolicy::default().with(|retry| {
        retry.max_attempts = 10_000;
        retry.backoff_min = Duration::from_millis(50);
        retry.backoff_max = Duration::from_millis(200);
    })
}

// --- the process that is killed -----------------------------------------------------------------------------------------

/// The process that the tests below kill. Without a plan in its environment, this test does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shop_process_to_be_killed() {
    let Some(plan) = Plan::of_this_process() else { return };
    let client = Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
    let test = TestDatabase { database: client.database(&plan.database), client, on_panic: None };
    let flow = Flow::of(test, &uri("OUTBOX_RABBITMQ_URI"));
    if plan.over_rabbitmq {
        run_over_rabbitmq(&flow, &plan).await;
    } else {
        run_in_one_process(&flow, &plan).await;
    }
}

fn dying(database: &Database, plan: &Plan, deliverer: Arc<dyn Deliver>) -> DyingDeliverer {
    let held = (LATE.to_owned(), database.collection("fulfillments"));
    DyingDeliverer { deliverer, dies: plan.dies, reached: 0.into(), held }
}

fn approve_within(plan: &Plan) -> Duration {
    Duration::from_millis(plan.approve_within_ms)
}

/// Runs the handlers, and a dispatcher that delivers to them what inline delivery has missed.
async fn run_in_one_process(flow: &Flow, plan: &Plan) {
    let (client, database) = (&flow.test.client, &flow.test.database);
    let made =
        InlineDispatcher::builder(client).inline_lease(LEASE).retry(patient()).deliver_to_with(|inline| {
            let handlers = handlers::in_process(&Stores::new(database, inline), approve_within(plan))?;
            Ok::<_, document_outbox::deliver::HandlersError>(dying(database, plan, Arc::new(handlers)))
        });
    let stores = Stores::new(database, &made.unwrap());
    let handlers = handlers::in_process(&stores, approve_within(plan)).unwrap();
    let settings = ProcessorSettings::default().with(|settings| {
        settings.claim_lease = LEASE;
        settings.retry = patient();
        settings.counts_claims = false;
        settings.state_database = flow.state().name().to_owned();
    });
    let processor =
        Processor::new(client.clone(), Arc::new(dying(database, plan, Arc::new(handlers))), settings);
    let dispatcher = Dispatcher::new(processor, flow.amqp("shop"), flow.dispatcher_settings()).unwrap();
    let _dispatcher = dispatcher.start();
    std::future::pending::<()>().await;
}

/// Runs the three receivers. The rescuer and the dispatcher run elsewhere.
async fn run_over_rabbitmq(flow: &Flow, plan: &Plan) {
    let (client, database) = (&flow.test.client, &flow.test.database);
    let rabbitmq = flow.rabbitmq("shop").await;
    let inline = InlineDispatcher::builder(client).inline_lease(LEASE).retry(patient());
    let inline = inline.deliver_to(dying(database, plan, Arc::new(rabbitmq)));
    let stores = Stores::new(database, &inline);
    let _receivers = receivers(flow, &stores, approve_within(plan)).await;
    std::future::pending::<()>().await;
}

/// A claim of a killed process blocks its document for this long.
const LEASE: Duration = Duration::from_secs(2);

async fn receivers(
    flow: &Flow,
    stores: &Stores,
    approve_within: Duration,
) -> Vec<document_outbox::receive::RunningReceiver> {
    let sets = [
        handlers::of_orders(&stores.orders),
        handlers::of_fulfillments(&stores.fulfillments, approve_within),
        handlers::of_stocks(&stores.stocks),
    ];
    let mut receivers = Vec::new();
    for (subscriptions, queue) in sets.into_iter().zip(queues(flow)) {
        let settings = ReceiverSettings::new(queue).with(|settings| {
            settings.exchange = flow.messages();
            settings.delivery_limit = 1_000;
            settings.inbox.count = 10_000;
        });
        let receiver = Receiver::new(flow.amqp("shop"), subscriptions, settings).unwrap().start();
        assert!(receiver.ready().await);
        receivers.push(receiver);
    }
    receivers
}

fn queues(flow: &Flow) -> [String; 3] {
    ["orders", "fulfillments", "stocks"].map(|part| format!("{}.{part}", flow.name()))
}

// --- the tests ----------------------------------------------------------------------------------------------------------

/// How the messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    InOneProcess,
    RabbitMq,
}

/// The shop as its customers and clerks see it, in the process of the test.
struct Scene {
    flow: Flow,
    transport: Transport,
    stores: Stores,
    clerks: Store<Clerk>,
    rescuer: Rescue,
    dispatcher: Option<outbox_dispatcher::Running>,
}

impl Scene {
    async fn begin(transport: Transport) -> Self {
        let flow = Flow::begin().await;
        let client = flow.test.client.clone();
        let database = flow.test.database.clone();

        // The customers' and clerks' saves leave their messages to the rescuer.
        let off = InlineDispatcher::builder(&client).mode(Mode::Off);
        let inline = match transport {
            Transport::RabbitMq => InlineDispatcher::off(&client),
            Transport::InOneProcess => {
                let inline = InlineDispatcher::off(&client);
                off.deliver_to(handlers::in_process(&Stores::new(&database, &inline), NEVER).unwrap())
            }
        };
        let stores = Stores::new(&database, &inline);
        let clerks = Store::new(database.collection::<Document>("clerks"), &inline);
        stores.orders.ensure_indexes().await.unwrap();
        stores.fulfillments.ensure_indexes().await.unwrap();
        stores.stocks.ensure_indexes().await.unwrap();
        clerks.ensure_indexes().await.unwrap();
        for product in PLENTY {
            stores.stocks.insert(Stock::of(product.into(), IN_PLENTY)).await.unwrap().applied().unwrap();
        }
        stores.stocks.insert(Stock::of(SCARCE.into(), ROUND - 1)).await.unwrap().applied().unwrap();

        let dispatcher = match transport {
            Transport::RabbitMq => Some(dispatcher(&flow).await),
            Transport::InOneProcess => None,
        };
        let settings = flow.rescuer_settings(Duration::from_secs(1));
        let settings = settings.with(|settings| settings.requeue_pause = Duration::from_millis(200));
        let rescuer = flow.rescuer(settings).await;
        Self { flow, transport, stores, clerks, rescuer, dispatcher }
    }

    fn plan(&self, approve_within: Duration, dies: Option<(Step, usize)>) -> Plan {
        Plan {
            database: self.flow.name().to_owned(),
            over_rabbitmq: self.transport == Transport::RabbitMq,
            approve_within_ms: approve_within.as_millis() as u64,
            dies,
        }
    }

    fn start(&self, approve_within: Duration, dies: Option<(Step, usize)>) -> ShopProcess {
        ShopProcess::start("saga::a_shop_process_to_be_killed", &self.plan(approve_within, dies))
    }

    async fn check_out(&self, order: &str) {
        let order = OrderRequest::check_out(order.into(), "Ada".into(), lines(order));
        self.stores.orders.insert(order).await.unwrap().applied().unwrap();
    }

    async fn approve(&self, order: &str) {
        self.stores.orders.try_update(order, OrderRequest::approve).await.unwrap().unwrap();
    }

    async fn saga(&self, order: &str) -> Option<OrderFulfillment> {
        self.stores.fulfillments.load(order).await.unwrap().map(|saga| saga.into_inner())
    }

    /// Waits until the saga of an order is as wanted.
    async fn wait_for_saga(&self, order: &str, wanted: impl Fn(&OrderFulfillment) -> bool) {
        while !self.saga(order).await.is_some_and(|saga| wanted(&saga)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn wait_until_confirmed(&self, order: &str) {
        use adventure_works::fulfillment::LineState::Confirmed;
        let confirmed = |saga: &OrderFulfillment| {
            saga.lines.len() == 2 && saga.lines.iter().all(|line| line.state == Confirmed)
        };
        self.wait_for_saga(order, confirmed).await;
    }

    /// Does what customers and clerks do, while processes are being killed.
    async fn act(&self) {
        for order in ["confirmed-then-approved", "approved-then-confirmed", "denied", "rejected", LATE] {
            self.check_out(order).await;
        }
        self.approve("approved-then-confirmed").await;

        let confirmed = async {
            self.wait_until_confirmed("confirmed-then-approved").await;
            self.approve("confirmed-then-approved").await;
        };
        let rejected = async {
            self.wait_until_confirmed("rejected").await;
            self.stores.orders.try_update("rejected", OrderRequest::reject).await.unwrap().unwrap();
        };
        let early = async {
            let order = "approved-before-created";
            let mut clerk = Clerk { name: "early".into(), outbox: Outbox::default() };
            clerk.outbox.send(OrderApproved { order: order.into() });
            self.clerks.insert(clerk).await.unwrap().applied().unwrap();
            self.wait_for_saga(order, |saga| saga.approved).await;
            self.check_out(order).await;
            self.approve(order).await;
        };
        tokio::join!(confirmed, rejected, early);
    }

    /// The undelivered messages of all documents.
    async fn undelivered(&self) -> Vec<String> {
        let mut types = Vec::new();
        for collection in ["orders", "fulfillments", "stocks", "clerks"] {
            let stored = self.flow.test.database.collection::<Document>(collection);
            let documents: Vec<_> = stored.find(doc! {}).await.unwrap().try_collect().await.unwrap();
            for entry in documents.iter().flat_map(|document| document.get_array("outbox")).flatten() {
                let entry = entry.as_document().unwrap();
                types.push(format!("{} in {collection}: {entry}", entry.get_str("type").unwrap()));
            }
        }
        types
    }

    /// The messages in the queues of the receivers.
    async fn queued(&self) -> u32 {
        if self.transport == Transport::InOneProcess {
            return 0;
        }
        let outside = self.flow.outside().await;
        let mut queued = 0;
        for queue in queues(&self.flow) {
            let passive = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
            let declared = outside.channel.queue_declare(queue.into(), passive, Default::default()).await;
            queued += declared.unwrap().message_count();
        }
        queued
    }

    async fn statuses(&self) -> BTreeMap<String, OrderStatus> {
        let orders = self.stores.orders.collection().clone_with_type::<OrderRequest>();
        let orders: Vec<_> = orders.find(doc! {}).await.unwrap().try_collect().await.unwrap();
        orders.into_iter().map(|order| (order.id, order.status)).collect()
    }

    async fn is_at_the_end(&self, paths: &[(&str, OrderStatus)]) -> bool {
        for (order, _) in paths {
            if !self.saga(order).await.is_some_and(|saga| saga.is_finished()) {
                return false;
            }
        }
        self.statuses().await == expected(paths)
            && self.undelivered().await.is_empty()
            && self.queued().await == 0
    }

    async fn wait_for_the_end(&self, paths: &[(&str, OrderStatus)]) {
        while !self.is_at_the_end(paths).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The end state: every order as expected, every saga finished, nothing undelivered, and stock that adds up.
    async fn must_be_right(&self, paths: &[(&str, OrderStatus)]) {
        assert_eq!(self.statuses().await, expected(paths));
        for (order, _) in paths {
            let saga = self.saga(order).await.unwrap();
            assert!(saga.is_finished(), "{saga:?}");
        }
        assert_eq!(self.undelivered().await, Vec::<String>::new());
        assert_eq!(self.queued().await, 0);

        let completed = paths.iter().filter(|(_, status)| *status == OrderStatus::Completed).count();
        let sold = ROUND * u32::try_from(completed).unwrap();
        for (product, left) in
            [(PLENTY[0], IN_PLENTY - sold), (PLENTY[1], IN_PLENTY - sold), (SCARCE, ROUND - 1)]
        {
            let stock = self.stores.stocks.load(product).await.unwrap().unwrap();
            assert_eq!(stock.available, left, "{product}");
        }
    }

    async fn end(self) {
        if let Some(dispatcher) = self.dispatcher {
            dispatcher.stop().await;
        }
        self.rescuer.stop().await;
        let outside = self.flow.outside().await;
        for queue in queues(&self.flow) {
            for suffix in ["", ".dead", ".delayed"] {
                let queue = format!("{queue}{suffix}");
                outside.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
            }
        }
        self.flow.end().await;
    }
}

fn expected(paths: &[(&str, OrderStatus)]) -> BTreeMap<String, OrderStatus> {
    paths.iter().map(|(order, status)| ((*order).to_owned(), *status)).collect()
}

/// A dispatcher that also delivers every message twice, and that is never killed.
async fn dispatcher(flow: &Flow) -> outbox_dispatcher::Running {
    let rabbitmq = Arc::new(flow.rabbitmq("dispatcher").await);
    let plan = Plan { database: flow.name().into(), over_rabbitmq: true, approve_within_ms: 0, dies: None };
    let twice = Arc::new(dying(&flow.test.database, &plan, rabbitmq));
    let settings = ProcessorSettings::default().with(|settings| {
        settings.retry = patient();
        settings.state_database = flow.state().name().to_owned();
    });
    let processor = Processor::new(flow.test.client.clone(), twice, settings);
    let dispatcher = Dispatcher::new(processor, flow.amqp("dispatcher"), flow.dispatcher_settings()).unwrap();
    let running = dispatcher.start();
    soon("the dispatcher to be ready", running.ready()).await;
    running
}

/// Drives every path while the process is killed. `times` is how many times each process reaches its step before it dies.
/// Without a broker, a process that dies at its first step finishes no delivery, so there the number grows.
async fn kill_after_each_step(transport: Transport, times: impl Fn(usize) -> usize) {
    let scene = Scene::begin(transport).await;
    if transport == Transport::RabbitMq {
        // The first receivers declare the queues, so that every message has a queue.
        drop(receivers(&scene.flow, &scene.stores, NEVER).await);
    }

    let mut kills = 0;
    {
        let mut all = std::pin::pin!(async {
            scene.act().await;
            scene.wait_for_the_end(&PATHS).await;
        });
        let killing = async {
            loop {
                let step = STEPS[kills % STEPS.len()];
                let mut process = scene.start(NEVER, Some((step, times(kills))));
                tokio::select! {
                    () = process.reached() => {}
                    () = &mut all => break,
                }
                process.kill().await;
                kills += 1;
            }
        };
        let ended = tokio::time::timeout(4 * LONG, killing).await;
        if ended.is_err() {
            panic!("{kills} kills: {:?} {:?}", scene.statuses().await, scene.undelivered().await);
        }
    }
    println!("{kills} kills");
    assert!(kills >= STEPS.len(), "each step was the last one of a process");
    scene.must_be_right(&PATHS).await;

    // A process that is not killed finds no message that would change the end.
    let rest = scene.start(NEVER, None);
    scene.wait_for_the_end(&PATHS).await;
    scene.must_be_right(&PATHS).await;
    rest.kill().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_ends_right_in_one_process_despite_kills() {
    kill_after_each_step(Transport::InOneProcess, |kills| 1 + kills / 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_ends_right_over_rabbitmq_despite_kills() {
    kill_after_each_step(Transport::RabbitMq, |kills| 1 + kills / 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_every_path_in_one_process_killed_after_each_step() {
    kill_after_each_step(Transport::InOneProcess, |kills| 1 + kills / 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_every_path_over_rabbitmq_killed_after_each_step() {
    kill_after_each_step(Transport::RabbitMq, |kills| 1 + kills % 4).await;
}

/// The time-out comes from the outbox of the saga, so it survives a kill.
async fn nobody_approves(transport: Transport) {
    let scene = Scene::begin(transport).await;
    let order = [("unapproved", OrderStatus::Cancelled)];
    if transport == Transport::RabbitMq {
        drop(receivers(&scene.flow, &scene.stores, NEVER).await);
    }
    let mut process = scene.start(Duration::from_secs(2), Some((Step::Delivered, 1)));
    scene.check_out("unapproved").await;
    soon("the first step", process.reached()).await;
    process.kill().await;
    let rest = scene.start(Duration::from_secs(2), None);
    soon("the cancellation", scene.wait_for_the_end(&order)).await;
    scene.must_be_right(&order).await;
    rest.kill().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_without_approval_is_cancelled_in_one_process() {
    nobody_approves(Transport::InOneProcess).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_without_approval_is_cancelled_over_rabbitmq() {
    nobody_approves(Transport::RabbitMq).await;
}

//! Rescuer and dispatcher inside the application's process: `cargo run --example in_process`.
//!
//! Messages go to a handler of this process. One order is paid as always: its message is delivered inline, right after the
//! save. Another is paid with inline delivery switched off, as if the process had died after the save: the rescuer finds
//! its message once it is as old as the delay, and the dispatcher calls the same handler.
//!
//! One process for everything is the simplest set-up. As separate processes, the two continue during a
//! deployment of the application, and one rescuer serves many applications.
//!
//! Needs MongoDB (a replica set) and RabbitMQ: `scripts/services up`, then `eval "$(scripts/services env)"`.

use std::{error::Error, sync::Arc, time::Duration};

use document_outbox::{
    Aggregate, CommandSender, InlineDispatcher, Message, Mode, Outbox, Store,
    amqp::{AmqpSettings, Publisher, TopologyMode},
    deliver::Handlers,
    dispatch::{Processor, ProcessorSettings},
};
use mongodb::Client;
use outbox_dispatcher::{Dispatcher, DispatcherSettings};
use outbox_rescuer::{BrokerCommands, CancellationToken, Rescuer, Settings as RescuerSettings};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    time::{Instant, timeout},
};

#[derive(Serialize, Deserialize)]
struct Order {
    #[serde(rename = "_id")]
    id: String,
    paid: bool,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize)]
struct OrderPaid {
    order: String,
}

impl Message for OrderPaid {
    const TYPE: &'static str = "order.paid";
}

impl Aggregate for Order {
    type Id = String;

    fn id(&self) -> &String {
        &self.id
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

/// Separate names, so that the example disturbs no other program.
const DATABASE: &str = "in_process";
const STATE_DATABASE: &str = "in_process_state";
const COMMANDS: &str = "in-process.commands";
const DELAY: Duration = Duration::from_secs(2);
const LEASE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::with_uri_str(setting("OUTBOX_MONGODB_URI", MONGODB)).await?;
    let amqp = AmqpSettings::new(&setting("OUTBOX_RABBITMQ_URI", RABBITMQ))?;
    let (told, mut shipped) = mpsc::unbounded_channel();
    let handlers = handlers(told)?;

    let inline = |mode| {
        let builder = InlineDispatcher::builder(&client).mode(mode).inline_lease(LEASE);
        builder.deliver_to(handlers.clone())
    };
    let (at_once, off) = (inline(Mode::Background), inline(Mode::Off));
    let health = at_once.health();
    let collection = client.database(DATABASE).collection::<Order>("orders");
    let orders = Store::<Order>::new(collection.clone(), &at_once);
    let orders_of_a_dying_process = Store::<Order>::new(collection, &off);
    orders.ensure_indexes().await?;

    let stop = CancellationToken::new();
    let dispatcher = dispatcher(&client, &amqp, handlers.clone())?.start();
    let rescuer = tokio::spawn(rescuer(client.clone(), amqp)?.run(stop.clone()));
    timeout(PATIENCE, dispatcher.ready()).await?;

    println!("{}", pay(&orders, &mut shipped, "delivered inline").await?);
    println!("{}", pay(&orders_of_a_dying_process, &mut shipped, "rescued").await?);

    // The answer for a health endpoint of this process; it sends no query.
    println!("health            {}", serde_json::to_string(&health.snapshot())?);

    at_once.close(PATIENCE).await;
    dispatcher.stop().await;
    stop.cancel();
    rescuer.await??;
    Ok(())
}

/// Places an order, pays it, and waits for the handler.
async fn pay(
    orders: &Store<Order>,
    shipped: &mut UnboundedReceiver<String>,
    how: &str,
) -> Result<String, Box<dyn Error>> {
    let id = uuid::Uuid::now_v7().to_string();
    let order = Order { id: id.clone(), paid: false, outbox: Outbox::default() };
    let _ = orders.insert(order).await?; // sends nothing, and cannot exist yet
    let began = Instant::now();
    let pay = |order: &mut Order| {
        order.paid = true;
        order.outbox.send(OrderPaid { order: order.id.clone() });
    };
    orders.update(&id, pay).await?;
    while timeout(PATIENCE, shipped.recv()).await?.ok_or("the handler is gone")? != id {}
    Ok(format!("{how:<16}  order {id}, {:.1?} after the save", began.elapsed()))
}

/// The application's handlers. Each has a key, which is remembered with the messages it had.
fn handlers(shipped: UnboundedSender<String>) -> Result<Handlers, Box<dyn Error>> {
    let handlers = Handlers::builder().on("shipping", move |message: OrderPaid, _| {
        let shipped = shipped.clone();
        async move { Ok(shipped.send(message.order)?) }
    });
    Ok(handlers.build()?)
}

/// Calls the same handlers for undelivered messages.
fn dispatcher(
    client: &Client,
    amqp: &AmqpSettings,
    handlers: Handlers,
) -> Result<Dispatcher, Box<dyn Error>> {
    let settings =
        ProcessorSettings::default().with(|settings| settings.state_database = STATE_DATABASE.into());
    let processor = Processor::new(client.clone(), Arc::new(handlers), settings);

    let mut settings = DispatcherSettings::new([format!("{DATABASE}.*").parse()?]);
    settings.commands_exchange = COMMANDS.into();
    settings.commands_queue = COMMANDS.into();
    Ok(Dispatcher::new(processor, amqp.clone(), settings)?)
}

/// Finds undelivered messages.
fn rescuer(client: Client, amqp: AmqpSettings) -> Result<Rescuer, Box<dyn Error>> {
    let topology = CommandSender::topology(COMMANDS, COMMANDS, TopologyMode::Declare);
    let commands = BrokerCommands::new(Publisher::start(amqp, topology), COMMANDS);
    let mut settings = RescuerSettings::new(vec![format!("{DATABASE}.*").parse()?]);
    settings.delay = DELAY;
    settings.state_database = STATE_DATABASE.into();
    Ok(Rescuer::new(client, Arc::new(commands), settings)?)
}

const MONGODB: &str = "mongodb://127.0.0.1:27017/?replicaSet=rs0";
const RABBITMQ: &str = "amqp://127.0.0.1:5672";

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.into())
}

//! The order application of `scripts/demo`. The application makes at least a thousand saves, each with messages, and
//! tolerates being killed at any moment.
//!
//! Every order is placed, paid, packed and shipped. Each of these four steps is one save that sends one or two messages
//! and also stores their ids in the field `sent`. Messages leave the outbox after delivery, but the ids in `sent` stay,
//! so that a later check can find messages that should have arrived.
//!
//! If the application is started again, it continues with the orders in the database. The application reports its work
//! as lines of JSON.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    reason = "the numbers of a demonstration are small"
)]

use std::{collections::HashMap, env, error::Error, str::FromStr, sync::Arc, time::Duration};

use document_outbox::{
    Aggregate, InlineDispatcher, Message, Outbox, RetryPolicy, Store,
    amqp::AmqpSettings,
    command::{COMMANDS_EXCHANGE, COMMANDS_QUEUE},
    deliver::{Deliver, MESSAGES_EXCHANGE, RabbitMq, RabbitMqSettings},
    store::Inserted,
};
use futures::TryStreamExt;
use mongodb::{Client, bson::doc};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::MissedTickBehavior};

// --- the domain ------------------------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    number: i64,
    customer: String,
    state: State,
    /// The ids of all messages ever sent.
    sent: Vec<String>,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "lowercase")]
enum State {
    Placed,
    Paid,
    Packed,
    Shipped,
}

#[derive(Serialize, Message)]
#[message(type = "order.placed")]
struct OrderPlaced {
    order: i64,
    customer: String,
}

#[derive(Serialize, Message)]
#[message(type = "stock.reserved")]
struct StockReserved {
    order: i64,
}

#[derive(Serialize, Message)]
#[message(type = "order.paid")]
struct OrderPaid {
    order: i64,
}

#[derive(Serialize, Message)]
#[message(type = "order.packed")]
struct OrderPacked {
    order: i64,
}

#[derive(Serialize, Message)]
#[message(type = "order.shipped")]
struct OrderShipped {
    order: i64,
}

#[derive(Serialize, Message)]
#[message(type = "customer.notified")]
struct CustomerNotified {
    order: i64,
    customer: String,
}

impl Order {
    fn place(number: i64) -> Self {
        let mut order = Self {
            number,
            customer: format!("customer {}", number % 97),
            state: State::Placed,
            sent: Vec::new(),
            outbox: Outbox::default(),
        };
        order.send(OrderPlaced { order: number, customer: order.customer.clone() });
        order.send(StockReserved { order: number });
        order
    }

    fn advance_to(&mut self, state: State) {
        let (order, customer) = (self.number, self.customer.clone());
        self.state = state;
        match state {
            State::Placed => {}
            State::Paid => self.send(OrderPaid { order }),
            State::Packed => self.send(OrderPacked { order }),
            State::Shipped => {
                self.send(OrderShipped { order });
                self.send(CustomerNotified { order, customer });
            }
        }
    }

    fn send(&mut self, message: impl Message) {
        let id = self.outbox.send(message).id();
        self.sent.push(id.to_string());
    }
}

// --- the work --------------------------------------------------------------------------------------------------------

/// The application changes orders in bursts, about this many bursts per second.
const BURSTS_A_SECOND: usize = 4;
const SAVES_OF_AN_ORDER: usize = 4;
/// Number of times that a save without a clear answer is checked.
const TRIES: u32 = 20;

struct Settings {
    mongodb: String,
    rabbitmq: String,
    database: String,
    saves: usize,
    saves_a_second: usize,
    messages_exchange: String,
    commands_exchange: String,
    commands_queue: String,
    inline_lease: Duration,
    retry: RetryPolicy,
}

impl Settings {
    fn from_env() -> Result<Self, Box<dyn Error>> {
        let millis = |name, default| Ok::<_, Box<dyn Error>>(Duration::from_millis(setting(name, default)?));

        let mut retry = RetryPolicy::default();
        retry.max_attempts = setting("ORDERS_MAX_ATTEMPTS", 10)?;
        retry.backoff_min = millis("ORDERS_BACKOFF_MIN_MS", 1_000)?;
        retry.backoff_max = millis("ORDERS_BACKOFF_MAX_MS", 300_000)?;

        Ok(Self {
            mongodb: setting("OUTBOX_MONGODB_URI", "mongodb://127.0.0.1:27017/?replicaSet=rs0".into())?,
            rabbitmq: setting("OUTBOX_RABBITMQ_URI", "amqp://127.0.0.1:5672".into())?,
            database: setting("ORDERS_DATABASE", "shop".into())?,
            saves: setting("ORDERS_SAVES", 1_000)?,
            saves_a_second: setting("ORDERS_SAVES_A_SECOND", 200)?,
            messages_exchange: setting("OUTBOX_MESSAGES_EXCHANGE", MESSAGES_EXCHANGE.into())?,
            commands_exchange: setting("OUTBOX_COMMANDS_EXCHANGE", COMMANDS_EXCHANGE.into())?,
            commands_queue: setting("OUTBOX_COMMANDS_QUEUE", COMMANDS_QUEUE.into())?,
            inline_lease: millis("ORDERS_INLINE_LEASE_MS", 10_000)?,
            retry,
        })
    }
}

fn setting<T: FromStr<Err: std::fmt::Display>>(name: &str, default: T) -> Result<T, Box<dyn Error>> {
    match env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text.parse().map_err(|error| format!("{name}: {error}").into()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::from_env()?;
    let client = Client::with_uri_str(&settings.mongodb).await?;
    let (messages, commands) = RabbitMq::start_with_hand_off(RabbitMqSettings {
        amqp: AmqpSettings::new(&settings.rabbitmq)?.named("orders-app"),
        exchange: settings.messages_exchange.clone(),
        commands_exchange: settings.commands_exchange.clone(),
        commands_queue: settings.commands_queue.clone(),
        ..RabbitMqSettings::new(&settings.rabbitmq)?
    });
    // Deliver in the background after each save. If a delivery fails, a command hands the message to the dispatcher at
    // once.
    let inline = InlineDispatcher::builder(&client)
        .inline_lease(settings.inline_lease)
        .retry(settings.retry.clone())
        .hand_off(commands)
        .deliver_to(messages.clone());
    let orders = client.database(&settings.database).collection::<Order>("orders");
    let shop = Shop { orders: Store::new(orders, &inline) };
    shop.orders.ensure_indexes().await?;
    // Waiting for the broker is optional. Messages that are saved before the broker is available are left to the
    // rescuer.
    let _ = tokio::time::timeout(Duration::from_secs(5), messages.available()).await;

    shop.run(settings.saves, settings.saves_a_second).await?;
    inline.close(Duration::from_secs(10)).await;
    messages.close().await;
    println!(r#"{{"done":true}}"#);
    Ok(())
}

#[derive(Clone)]
struct Shop {
    orders: Store<Order>,
}

impl Shop {
    /// Makes at least this many saves, including those of earlier runs.
    async fn run(self, saves: usize, saves_a_second: usize) -> Result<(), Box<dyn Error>> {
        let states = Arc::new(self.states().await?);
        let before: usize = states.values().map(|state| 1 + *state as usize).sum();
        println!(r#"{{"started":true,"saves":{before}}}"#);
        let shop = Arc::new(self);
        let cohort = (saves_a_second / BURSTS_A_SECOND / SAVES_OF_AN_ORDER).max(1);
        let cohorts = saves.div_ceil(SAVES_OF_AN_ORDER).div_ceil(cohort);
        let pause =
            Duration::from_secs_f64((cohort * SAVES_OF_AN_ORDER) as f64 / saves_a_second.max(1) as f64);
        let mut clock = tokio::time::interval(pause);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for burst in 0..cohorts + 3 {
            let steps = steps(burst, cohort, cohorts);
            let left = steps.into_iter().filter(|(number, to)| states.get(number) < Some(to));
            let mut at_once = JoinSet::new();
            for (number, to) in left {
                let shop = shop.clone();
                at_once.spawn(async move { shop.advance(number, to).await });
            }
            if at_once.is_empty() {
                continue; // an earlier run has made every save of this burst
            }
            while let Some(done) = at_once.join_next().await {
                done??;
            }
            clock.tick().await;
        }
        Ok(())
    }

    /// Reads the state of each order.
    async fn states(&self) -> Result<HashMap<i64, State>, mongodb::error::Error> {
        #[derive(Deserialize)]
        struct Stored {
            #[serde(rename = "_id")]
            number: i64,
            state: State,
        }
        let orders = self.orders.collection().clone_with_type::<Stored>();
        let stored = orders.find(doc! {}).projection(doc! { "state": 1 }).await?;
        stored.map_ok(|order| (order.number, order.state)).try_collect().await
    }

    /// Brings one order to a state, one save at a time.
    async fn advance(&self, number: i64, to: State) -> Result<(), document_outbox::Error> {
        let mut tries = 0;
        loop {
            match self.step(number, to).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // A write with an unknown outcome is not a failure here, because the next step checks whether the write
                // was applied.
                Err(error) if tries < TRIES => {
                    tries += 1;
                    match std::error::Error::source(&error) {
                        Some(cause) => eprintln!("{error}: {cause}"),
                        None => eprintln!("{error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes one save. Returns true, without a save, if the order already has this state.
    async fn step(&self, number: i64, to: State) -> Result<bool, document_outbox::Error> {
        let Some(mut order) = self.orders.load(&number).await? else {
            let inserted = self.orders.insert(Order::place(number)).await?;
            if let Inserted::Applied(_, receipt) = inserted {
                saved(number, receipt.messages.len());
            }
            return Ok(false);
        };
        let Some(next) = next(order.state).filter(|next| *next <= to) else {
            return Ok(true);
        };
        order.advance_to(next);
        if let document_outbox::store::Saved::Applied(receipt) = self.orders.save(&mut order).await? {
            saved(number, receipt.messages.len());
        }
        Ok(false)
    }
}

/// Returns the steps of a burst: one cohort of orders is placed, the previous cohort is paid, the cohort before that is
/// packed, and so on. For every other order, packing follows payment at once, so that the save for packing still finds
/// entries in the outbox.
fn steps(burst: usize, cohort: usize, cohorts: usize) -> Vec<(i64, State)> {
    let states = [State::Placed, State::Paid, State::Packed, State::Shipped];
    let of = |(age, state): (usize, State)| {
        let index = burst.checked_sub(age).filter(|index| *index < cohorts);
        let numbers = index.map_or(0..0, |index| index * cohort..(index + 1) * cohort);
        numbers.map(move |number| match state {
            State::Paid if number % 2 == 0 => (number as i64, State::Packed),
            state => (number as i64, state),
        })
    };
    states.into_iter().enumerate().flat_map(of).collect()
}

fn next(state: State) -> Option<State> {
    match state {
        State::Placed => Some(State::Paid),
        State::Paid => Some(State::Packed),
        State::Packed => Some(State::Shipped),
        State::Shipped => None,
    }
}

fn saved(order: i64, messages: usize) {
    println!(r#"{{"saved":{order},"messages":{messages}}}"#);
}

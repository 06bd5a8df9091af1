//! A bike shop with a saga: an order gets stock for all of its lines, or is cancelled and returns the stock.
//!
//! ```text
//! cargo run --example adventure_works                                      one process, without a broker
//! cargo run --example adventure_works -- orders|fulfillments|stocks        three processes over RabbitMQ
//! ```
//!
//! The address of MongoDB is in `OUTBOX_MONGODB_URI`, and the one of RabbitMQ in `OUTBOX_RABBITMQ_URI`; `scripts/services`
//! starts both. `LISTEN` is the address of the screens (default 127.0.0.1:8080), `ADVENTURE_WORKS_DATABASE` the database,
//! and `ADVENTURE_WORKS_APPROVE_WITHIN` the number of seconds in which an order must be approved. One process and three
//! processes need different databases: neither delivers the stored messages of the other.
//!
//! | file | holds |
//! |---|---|
//! | `order.rs`, `fulfillment.rs`, `stock.rs` | the documents, with their rules as plain functions |
//! | `messages.rs` | the messages between them |
//! | `handlers.rs` | which message goes to which document |
//! | `services.rs`, `stores.rs` | what a process runs |
//! | `web.rs`, `pages.rs`, `cart.rs`, `products.rs` | the screens |

pub(crate) mod cart;
pub(crate) mod fulfillment;
pub(crate) mod handlers;
pub(crate) mod messages;
pub(crate) mod order;
pub(crate) mod pages;
pub(crate) mod products;
pub(crate) mod services;
pub(crate) mod stock;
pub(crate) mod stores;
pub(crate) mod web;

use std::{env, time::Duration};

use mongodb::Client;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use self::services::{Failure, Part, Shop};

/// The database of one process. Its messages are stored for the handlers of the process, so nothing delivers them to
/// RabbitMQ.
const DATABASE: &str = "adventure_works";
/// The database of the three processes, whose messages are stored for RabbitMQ.
const DATABASE_OVER_RABBITMQ: &str = "adventure_works_rabbitmq";
const APPROVE_WITHIN: Duration = Duration::from_mins(15);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Failure> {
    let part = match env::args().nth(1) {
        Some(name) => Some(name.parse().map_err(|_| "name a part: orders, fulfillments or stocks")?),
        None => None,
    };
    Box::pin(run(part)).await
}

/// Runs one part of the shop, or all of it, until the process is asked to stop.
pub(crate) async fn run(part: Option<Part>) -> Result<(), Failure> {
    let client = Client::with_uri_str(env::var("OUTBOX_MONGODB_URI")?).await?;
    let default = if part.is_some() { DATABASE_OVER_RABBITMQ } else { DATABASE };
    let database = env::var("ADVENTURE_WORKS_DATABASE").unwrap_or_else(|_| default.into());
    let database = client.database(&database);
    let approve_within = match env::var("ADVENTURE_WORKS_APPROVE_WITHIN") {
        Ok(seconds) => Duration::from_secs(seconds.parse()?),
        Err(_) => APPROVE_WITHIN,
    };

    let shop = match part {
        None => Box::pin(Shop::in_one_process(&client, &database, approve_within)).await?,
        Some(part) => {
            let broker = env::var("OUTBOX_RABBITMQ_URI")?;
            Box::pin(Shop::over_rabbitmq(&client, &database, &broker, part, approve_within)).await?
        }
    };

    if matches!(part, None | Some(Part::Orders)) {
        serve(&shop).await?;
    } else {
        println!("running");
        asked_to_stop().await?;
    }
    shop.stop().await
}

/// Serves the screens until the process is asked to stop.
async fn serve(shop: &Shop) -> Result<(), Failure> {
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);

    let saves = tokio_util::task::TaskTracker::new();
    let app = web::screens(shop.stores.clone(), saves.clone());
    let stopped = async { asked_to_stop().await.unwrap_or_default() };
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;

    saves.close();
    saves.wait().await;
    Ok(())
}

async fn asked_to_stop() -> Result<(), Failure> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

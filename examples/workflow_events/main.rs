//! An event bus in one process, whose events survive a restart: `cargo run --example workflow_events`.
//!
//! An order publishes an event by a save, and two handlers react: each saves a task, with a message in the task's own
//! outbox. The example answers three questions:
//!
//! - What does the publisher notice if a handler fails? Nothing, or as much as it wants: a save returns at once, or it
//!   waits for the handlers and reports the result of each message.
//! - What do the other handlers notice? Nothing: each handler runs in a task of its own, and one that has succeeded is
//!   not called again when the event is retried.
//! - What if the process ends after the publish and before the handlers? The event is in the order's document. After the
//!   restart, the dispatcher calls the handlers.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use document_outbox::{
    Aggregate, DeliveryOrder, Dispatch, DocumentRef, InlineDispatcher, Message, Mode, Outbox, Store,
    deliver::{HandlerError, Handlers},
    dispatch::{Disposition, Processed, Processor, ProcessorSettings},
    store::NotInserted,
};
use mongodb::{Client, bson::oid::ObjectId};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: ObjectId,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "order.placed")]
struct OrderPlaced(ObjectId);

/// The work that a handler has begun. Its id is made from the event, so a repeat of the event finds the task.
#[derive(Serialize, Deserialize, Aggregate)]
struct Task {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "task.begun")]
struct TaskBegun(String);

async fn begin(tasks: Store<Task>, id: String) -> Result<(), HandlerError> {
    let mut task = Task { id: id.clone(), outbox: Outbox::default() };
    task.outbox.send(TaskBegun(id));
    match tasks.insert(task).await?.applied() {
        Ok(_) | Err(NotInserted::Exists(_)) => Ok(()),
        Err(unknown) => Err(unknown.into()),
    }
}

/// The bus: two handlers of one event. The second one fails while billing is down.
fn bus(tasks: &Store<Task>, is_billing_up: Arc<AtomicBool>) -> Result<Handlers, Box<dyn Error>> {
    let (ship, bill) = (tasks.clone(), tasks.clone());
    let handlers = Handlers::builder()
        .on("ship", move |OrderPlaced(order), _| begin(ship.clone(), format!("{order}/ship")))
        .on("bill", move |OrderPlaced(order), _| {
            let (bill, is_up) = (bill.clone(), is_billing_up.load(Ordering::Relaxed));
            async move {
                if is_up {
                    begin(bill, format!("{order}/bill")).await
                } else {
                    Err(HandlerError::transient("billing is down"))
                }
            }
        });
    Ok(handlers.build()?)
}

/// Publishes an event: places an order.
async fn publish(orders: &Store<Order>) -> Result<(ObjectId, Dispatch), Box<dyn Error>> {
    let mut order = Order { id: ObjectId::new(), outbox: Outbox::default() };
    order.outbox.send(OrderPlaced(order.id));
    let (order, receipt) = orders.insert(order).await?.applied()?;
    Ok((order.id, receipt.dispatch))
}

/// Turns a failed handler into an error of the publisher, for a publisher that wants to know.
fn all_handled(dispatch: &Dispatch) -> Result<(), String> {
    let Dispatch::Settled(settled) = dispatch else {
        return Err("the save did not wait for the handlers".into());
    };
    match settled.iter().find(|(_, disposition)| *disposition != Disposition::Delivered) {
        Some((event, disposition)) => Err(format!("event {event}: {disposition:?}")),
        None => Ok(()),
    }
}

/// Does the work of the dispatcher after a restart, until every handler of the document's events has succeeded. In
/// production the rescuer finds the documents.
async fn catch_up(dispatcher: &Processor, document: DocumentRef) -> Result<(), Box<dyn Error>> {
    let stop = CancellationToken::new();
    while dispatcher.process(&document, DeliveryOrder::Ordered, &stop).await? != Processed::Done {
        tokio::time::sleep(Duration::from_millis(10)).await; // until the next attempt is due
    }
    Ok(())
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let database = client.database("example_workflow");
    let tasks = Store::<Task>::new(database.collection::<Task>("tasks"), &InlineDispatcher::off(&client));
    let is_billing_up = Arc::new(AtomicBool::new(false));
    let bus = bus(&tasks, is_billing_up.clone())?;
    let orders_of = |mode| {
        let inline = InlineDispatcher::builder(&client).mode(mode).deliver_to(bus.clone());
        (Store::<Order>::new(database.collection::<Order>("orders"), &inline), inline)
    };

    // The publisher doesn't wait, and doesn't notice that billing is down.
    let (orders, inline) = orders_of(Mode::Background);
    let (unnoticed, dispatch) = publish(&orders).await?;
    assert_eq!(dispatch, Dispatch::Background);
    inline.close(Duration::from_secs(10)).await;

    // The publisher waits, and a failed handler is its own failure, too. The order is saved nevertheless.
    let (orders, _inline) = orders_of(Mode::Await);
    let (noticed, dispatch) = publish(&orders).await?;
    assert!(all_handled(&dispatch).is_err_and(|error| error.contains("billing is down")));

    // The process ends between the publish and its handlers.
    let (orders, _inline) = orders_of(Mode::Off);
    let (interrupted, _) = publish(&orders).await?;

    // After the restart, the dispatcher calls the handlers that have not succeeded.
    is_billing_up.store(true, Ordering::Relaxed);
    let dispatcher = Processor::new(client.clone(), Arc::new(bus), ProcessorSettings::default());
    for order in [unnoticed, noticed, interrupted] {
        catch_up(&dispatcher, DocumentRef::by_id(orders.collection().namespace(), order)).await?;
        for handler in ["ship", "bill"] {
            assert!(tasks.load(&format!("{order}/{handler}")).await?.is_some());
        }
    }
    Ok(())
}

//! An order is paid; its message is saved with it, and delivered: `cargo run --example quickstart`.

use document_outbox::{
    Aggregate, InlineDispatcher, Message, Outbox, Store, deliver::Handlers, store::Inserted,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Order {
    #[serde(rename = "_id")]
    id: String,
    paid: bool,
    #[serde(skip)]
    outbox: Outbox,
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

#[derive(Serialize, Deserialize)]
struct OrderPaid {
    order: String,
}

impl Message for OrderPaid {
    const TYPE: &'static str = "order.paid";
}

impl Order {
    fn pay(&mut self) {
        self.paid = true;
        self.outbox.send(OrderPaid { order: self.id.clone() });
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri = std::env::var("OUTBOX_MONGODB_URI").unwrap_or("mongodb://127.0.0.1/?replicaSet=rs0".into());
    let client = mongodb::Client::with_uri_str(uri).await?;

    // Messages go to a function here; examples/orders.rs sends them to RabbitMQ.
    let handlers = Handlers::builder().on("print", |message: OrderPaid, _| async move {
        println!("delivered  order.paid {}", message.order);
        Ok(())
    });
    let inline = InlineDispatcher::builder(&client).deliver_to(handlers.build()?);
    let orders = Store::<Order>::new(client.database("shop").collection::<Order>("orders"), &inline);

    let id = uuid::Uuid::now_v7().to_string();
    let order = Order { id: id.clone(), paid: false, outbox: Outbox::default() };
    let Inserted::Applied(..) = orders.insert(order).await? else {
        return Err("the order was not inserted".into());
    };
    orders.update(&id, Order::pay).await?; // loads, pays, saves; again when somebody else saved in between
    println!("saved      order.paid {id}");
    inline.close(std::time::Duration::from_secs(10)).await; // waits for what is in flight
    Ok(())
}

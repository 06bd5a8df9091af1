//! Uses one database for each tenant, and one inline dispatcher for all of them: `cargo run --example tenants`.
//!
//! The services watch all databases with a pattern: `OUTBOX_WATCH='tenant_*.orders'`.

use document_outbox::{Aggregate, InlineDispatcher, Message, Outbox, Store, deliver::Handlers};
use mongodb::{Client, bson::oid::ObjectId};
use serde::{Deserialize, Serialize};

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

struct Tenants {
    client: Client,
    inline: InlineDispatcher,
}

impl Tenants {
    fn orders(&self, tenant: &str) -> Store<Order> {
        let database = self.client.database(&format!("example_tenant_{tenant}"));
        Store::new(database.collection::<Order>("orders"), &self.inline)
    }
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let handlers = Handlers::builder().on("ship", |OrderPlaced(order), envelope| async move {
        let tenant = envelope.headers.get("tenant").map_or("unknown", String::as_str);
        println!("{tenant} placed {order} in {}", envelope.document.namespace.db);
        Ok(())
    });
    let inline = InlineDispatcher::builder(&client).deliver_to(handlers.build()?);
    let tenants = Tenants { client, inline };
    for tenant in ["north", "south"] {
        let mut order = Order { id: ObjectId::new(), outbox: Outbox::default() };
        order.outbox.send(OrderPlaced(order.id)).header("tenant", tenant);
        tenants.orders(tenant).insert(order).await?.applied()?;
    }
    tenants.inline.close(std::time::Duration::from_secs(10)).await;
    Ok(())
}

//! Writes two documents and their message in a transaction: `cargo run --example transaction`.
//!
//! One aggregate with its messages needs no transaction. A transaction is for two documents that must change together.

use document_outbox::{Aggregate, InlineDispatcher, Message, Outbox, Store, deliver::Handlers};
use mongodb::{Client, bson::doc, bson::oid::ObjectId, options::WriteConcern};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Aggregate)]
struct Account {
    #[serde(rename = "_id")]
    id: ObjectId,
    balance: i64,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "money.moved")]
struct MoneyMoved(ObjectId);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let handlers = Handlers::builder().on("notify", |_: MoneyMoved, _| async { Ok(()) }).build()?;
    let inline = InlineDispatcher::builder(&client).deliver_to(handlers);
    let collection = client.database("example_transaction").collection::<Account>("accounts");
    let accounts = Store::<Account>::new(collection.clone(), &inline);
    let [from, to] = [ObjectId::new(), ObjectId::new()];
    for id in [from, to] {
        accounts.insert(Account { id, balance: 100, outbox: Outbox::default() }).await?.applied()?;
    }

    let mut outbox = Outbox::default();
    outbox.send(MoneyMoved(from));
    let staged = accounts.stage(&mut outbox).await?;
    let mut session = client.start_session().await?;
    session.start_transaction().write_concern(WriteConcern::majority()).await?;
    let debit = staged.onto(doc! { "$inc": { "balance": -10 } })?;
    collection.update_one(doc! { "_id": from }, debit).session(&mut session).await?;
    let credit = doc! { "$inc": { "balance": 10 } };
    collection.update_one(doc! { "_id": to }, credit).session(&mut session).await?;
    session.commit_transaction().await?;
    staged.committed(from).await; // only after the commit, because the message exists if and only if the commit succeeded

    inline.close(std::time::Duration::from_secs(10)).await;
    assert_eq!(accounts.load(&from).await?.map(|account| account.balance), Some(90));
    Ok(())
}

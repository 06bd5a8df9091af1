//! The collections of the shop.

use document_outbox::{Error, InlineDispatcher, Store};
use mongodb::{Database, bson::Document};

use super::{fulfillment::OrderFulfillment, order::OrderRequest, products::PRODUCTS, stock::Stock};

#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) orders: Store<OrderRequest>,
    pub(crate) fulfillments: Store<OrderFulfillment>,
    pub(crate) stocks: Store<Stock>,
}

impl Stores {
    pub(crate) fn new(database: &Database, inline: &InlineDispatcher) -> Self {
        Self {
            orders: Store::new(database.collection::<Document>("orders"), inline),
            fulfillments: Store::new(database.collection::<Document>("fulfillments"), inline),
            stocks: Store::new(database.collection::<Document>("stocks"), inline),
        }
    }

    /// Creates the indexes, and the stock of products that have none.
    pub(crate) async fn set_up(&self) -> Result<(), Error> {
        self.orders.ensure_indexes().await?;
        self.fulfillments.ensure_indexes().await?;
        self.stocks.ensure_indexes().await?;

        for product in &PRODUCTS {
            while self.stocks.load(product.id).await?.is_none() {
                // The next load shows whether this insert, or the one of another process, was applied.
                let _ = self.stocks.insert(Stock::of(product.id.to_owned(), product.stock)).await?;
            }
        }
        Ok(())
    }
}

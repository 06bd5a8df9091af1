//! The stock of a product.

use document_outbox::{Aggregate, Inbox, InboxLimits, Outbox};
use serde::{Deserialize, Serialize};

use super::messages::{StockConfirmed, StockDenied, StockRequested, StockReturnRequested};

#[derive(Debug, PartialEq, Serialize, Deserialize, Aggregate)]
pub(crate) struct Stock {
    #[serde(rename = "_id")]
    pub(crate) product: String,
    pub(crate) available: u32,
    #[serde(default)]
    pub(crate) inbox: Inbox,
    #[serde(skip)]
    pub(crate) outbox: Outbox,
}

impl Stock {
    /// A stock receives messages from all orders, so its inbox must remember more than the default.
    pub(crate) fn inbox_limits() -> InboxLimits {
        let mut limits = InboxLimits::default();
        limits.count = 10_000;
        limits
    }

    pub(crate) fn of(product: String, available: u32) -> Self {
        Self { product, available, inbox: Inbox::default(), outbox: Outbox::default() }
    }

    /// The stock of an unknown product. Every request for it is denied.
    pub(crate) fn none(product: String) -> Self {
        Self::of(product, 0)
    }

    /// Sets the quantity aside if it is there.
    pub(crate) fn request(&mut self, request: &StockRequested) {
        let (order, product) = (request.order.clone(), request.product.clone());
        match self.available.checked_sub(request.quantity) {
            Some(left) => {
                self.available = left;
                self.outbox.send(StockConfirmed { order, product });
            }
            None => {
                self.outbox.send(StockDenied { order, product });
            }
        }
    }

    /// Takes back a quantity that was set aside.
    pub(crate) fn take_back(&mut self, returned: &StockReturnRequested) {
        self.available = self.available.saturating_add(returned.quantity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(quantity: u32) -> StockRequested {
        StockRequested { order: "o-1".into(), product: "bell".into(), quantity }
    }

    #[test]
    fn a_quantity_is_set_aside_or_denied() {
        let mut stock = Stock::of("bell".into(), 3);
        stock.request(&request(2));
        stock.request(&request(2));
        stock.request(&request(1));
        assert_eq!(stock.outbox.types(), ["stock.confirmed", "stock.denied", "stock.confirmed"]);
        assert_eq!(stock.available, 0);

        stock.take_back(&StockReturnRequested { order: "o-1".into(), product: "bell".into(), quantity: 2 });
        assert_eq!(stock.available, 2);
    }

    #[test]
    fn an_unknown_product_is_denied() {
        let mut stock = Stock::none("bell".into());
        stock.request(&request(1));
        assert_eq!(stock.outbox.types(), ["stock.denied"]);
    }
}

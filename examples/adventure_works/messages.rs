//! The messages between orders, the fulfillment of an order, and the stock of a product.

use document_outbox::Message;
use serde::{Deserialize, Serialize};

/// The id of an order, which its fulfillment has too: a UUID as text.
pub(crate) type OrderId = String;

/// A customer has checked out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "order.created")]
pub(crate) struct OrderCreated {
    pub(crate) order: OrderId,
    pub(crate) lines: Vec<OrderedLine>,
}

/// A line of an order, as far as the stock is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderedLine {
    pub(crate) product: String,
    pub(crate) quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "order.approved")]
pub(crate) struct OrderApproved {
    pub(crate) order: OrderId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "order.rejected")]
pub(crate) struct OrderRejected {
    pub(crate) order: OrderId,
}

/// No clerk has approved the order in time. The fulfillment sends this message to itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "order.approval_timed_out")]
pub(crate) struct ApprovalTimedOut {
    pub(crate) order: OrderId,
}

/// The stock has not answered in time, although the order is approved. The fulfillment sends this message to itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "order.fulfillment_timed_out")]
pub(crate) struct FulfillmentTimedOut {
    pub(crate) order: OrderId,
}

/// Asks the order to become cancelled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "order.cancel_requested")]
pub(crate) struct CancelOrderRequested {
    pub(crate) order: OrderId,
}

/// All lines are confirmed, and the order is approved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "order.fulfilled")]
pub(crate) struct OrderFulfilled {
    pub(crate) order: OrderId,
}

/// Asks the stock of a product for a quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "stock.requested")]
pub(crate) struct StockRequested {
    pub(crate) order: OrderId,
    pub(crate) product: String,
    pub(crate) quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "stock.confirmed")]
pub(crate) struct StockConfirmed {
    pub(crate) order: OrderId,
    pub(crate) product: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "stock.denied")]
pub(crate) struct StockDenied {
    pub(crate) order: OrderId,
    pub(crate) product: String,
}

/// Gives a confirmed quantity back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "stock.return_requested")]
pub(crate) struct StockReturnRequested {
    pub(crate) order: OrderId,
    pub(crate) product: String,
    pub(crate) quantity: u32,
}

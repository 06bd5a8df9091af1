//! The handlers of the messages. Each set receives from its own queue, or inside one process.

use std::time::Duration;

use document_outbox::{
    Store,
    deliver::{Handlers, HandlersError},
    receive::Subscriptions,
};

use super::{
    fulfillment::OrderFulfillment,
    messages::{
        ApprovalTimedOut, CancelOrderRequested, FulfillmentTimedOut, OrderApproved, OrderCreated,
        OrderFulfilled, OrderRejected, StockConfirmed, StockDenied, StockRequested, StockReturnRequested,
    },
    order::OrderRequest,
    stock::Stock,
    stores::Stores,
};

pub(crate) fn of_orders(orders: &Store<OrderRequest>) -> Subscriptions {
    Subscriptions::new()
        .into_aggregate(
            orders,
            |message: &CancelOrderRequested| message.order.clone(),
            OrderRequest::missing,
            |order, _| order.cancel(),
        )
        .into_aggregate(
            orders,
            |message: &OrderFulfilled| message.order.clone(),
            OrderRequest::missing,
            |order, _| order.complete(),
        )
}

pub(crate) fn of_fulfillments(
    fulfillments: &Store<OrderFulfillment>,
    approve_within: Duration,
) -> Subscriptions {
    Subscriptions::new()
        .into_aggregate(
            fulfillments,
            |message: &OrderCreated| message.order.clone(),
            OrderFulfillment::begin,
            move |saga, message| saga.order_created(message, approve_within),
        )
        .into_aggregate(
            fulfillments,
            |message: &OrderApproved| message.order.clone(),
            OrderFulfillment::begin,
            |saga, _| saga.order_approved(),
        )
        .into_aggregate(
            fulfillments,
            |message: &OrderRejected| message.order.clone(),
            OrderFulfillment::begin,
            |saga, _| saga.order_rejected(),
        )
        .into_aggregate(
            fulfillments,
            |message: &ApprovalTimedOut| message.order.clone(),
            OrderFulfillment::begin,
            |saga, _| saga.approval_timed_out(),
        )
        .into_aggregate(
            fulfillments,
            |message: &FulfillmentTimedOut| message.order.clone(),
            OrderFulfillment::begin,
            |saga, _| saga.fulfillment_timed_out(),
        )
        .into_aggregate(
            fulfillments,
            |message: &StockConfirmed| message.order.clone(),
            OrderFulfillment::begin,
            |saga, message| saga.stock_confirmed(&message.product),
        )
        .into_aggregate(
            fulfillments,
            |message: &StockDenied| message.order.clone(),
            OrderFulfillment::begin,
            |saga, message| saga.stock_denied(&message.product),
        )
}

pub(crate) fn of_stocks(stocks: &Store<Stock>) -> Subscriptions {
    Subscriptions::new()
        .into_aggregate(
            stocks,
            |message: &StockRequested| message.product.clone(),
            Stock::none,
            Stock::request,
        )
        .into_aggregate(
            stocks,
            |message: &StockReturnRequested| message.product.clone(),
            Stock::none,
            Stock::take_back,
        )
}

/// All handlers in one process.
pub(crate) fn in_process(stores: &Stores, approve_within: Duration) -> Result<Handlers, HandlersError> {
    Handlers::builder()
        .subscriptions("orders", of_orders(&stores.orders))
        .subscriptions("fulfillments", of_fulfillments(&stores.fulfillments, approve_within))
        .subscriptions_within(Stock::inbox_limits(), "stocks", of_stocks(&stores.stocks))
        .build()
}

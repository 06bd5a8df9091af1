//! An order, as the customer and the clerk see it.

use document_outbox::{Aggregate, Inbox, Outbox, deliver::HandlerError};
use serde::{Deserialize, Serialize};

use super::messages::{OrderApproved, OrderCreated, OrderId, OrderRejected, OrderedLine};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OrderStatus {
    /// Waits for a clerk.
    New,
    Approved,
    Rejected,
    Cancelled,
    Completed,
}

/// A line of an order, with the price at the time of the checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderLine {
    pub(crate) product: String,
    pub(crate) name: String,
    pub(crate) cents: u32,
    pub(crate) quantity: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Aggregate)]
pub(crate) struct OrderRequest {
    #[serde(rename = "_id")]
    pub(crate) id: OrderId,
    pub(crate) customer: String,
    pub(crate) lines: Vec<OrderLine>,
    pub(crate) cents: u64,
    pub(crate) status: OrderStatus,
    #[serde(default)]
    pub(crate) inbox: Inbox,
    #[serde(skip)]
    pub(crate) outbox: Outbox,
}

/// Why a clerk can't approve or reject an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the order is {0:?}, and only a new order can be approved or rejected")]
pub(crate) struct NotNew(OrderStatus);

impl OrderRequest {
    /// A customer checks out. The id comes from the form, so that a repeated form makes no second order.
    pub(crate) fn check_out(id: OrderId, customer: String, lines: Vec<OrderLine>) -> Self {
        let cents = lines.iter().map(|line| u64::from(line.cents) * u64::from(line.quantity)).sum();
        let mut outbox = Outbox::default();
        let ordered =
            lines.iter().map(|line| OrderedLine { product: line.product.clone(), quantity: line.quantity });
        outbox.send(OrderCreated { order: id.clone(), lines: ordered.collect() });
        Self { id, customer, lines, cents, status: OrderStatus::New, inbox: Inbox::default(), outbox }
    }

    /// Takes the place of an order that does not exist. A message for it fails, so it is never saved.
    pub(crate) fn missing(id: OrderId) -> Self {
        Self {
            id,
            customer: String::new(),
            lines: Vec::new(),
            cents: 0,
            status: OrderStatus::New,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
        }
    }

    /// A clerk approves the order.
    pub(crate) fn approve(&mut self) -> Result<(), NotNew> {
        match self.status {
            OrderStatus::Approved => Ok(()),
            OrderStatus::New => {
                self.status = OrderStatus::Approved;
                self.outbox.send(OrderApproved { order: self.id.clone() });
                Ok(())
            }
            other => Err(NotNew(other)),
        }
    }

    /// A clerk rejects the order.
    pub(crate) fn reject(&mut self) -> Result<(), NotNew> {
        match self.status {
            OrderStatus::Rejected => Ok(()),
            OrderStatus::New => {
                self.status = OrderStatus::Rejected;
                self.outbox.send(OrderRejected { order: self.id.clone() });
                Ok(())
            }
            other => Err(NotNew(other)),
        }
    }

    /// The fulfillment has failed, or no clerk has approved the order in time. A rejected order stays rejected.
    pub(crate) fn cancel(&mut self) -> Result<(), HandlerError> {
        self.must_exist()?;
        if matches!(self.status, OrderStatus::New | OrderStatus::Approved) {
            self.status = OrderStatus::Cancelled;
        }
        Ok(())
    }

    /// The fulfillment has succeeded.
    pub(crate) fn complete(&mut self) -> Result<(), HandlerError> {
        self.must_exist()?;
        if self.status == OrderStatus::Approved {
            self.status = OrderStatus::Completed;
        }
        Ok(())
    }

    fn must_exist(&self) -> Result<(), HandlerError> {
        if self.lines.is_empty() {
            return Err(HandlerError::permanent("there is no such order"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> OrderRequest {
        let line = |product: &str, cents, quantity| OrderLine {
            product: product.into(),
            name: product.into(),
            cents,
            quantity,
        };
        OrderRequest::check_out(
            "o-1".into(),
            "Ada".into(),
            vec![line("bell", 500, 2), line("bike", 90_000, 1)],
        )
    }

    #[test]
    fn a_checkout_adds_up_and_announces_the_order() {
        let order = order();
        assert_eq!((order.cents, order.status), (91_000, OrderStatus::New));
        let created = &order.outbox.sent::<OrderCreated>()[0];
        assert_eq!(created.order, order.id);
        assert_eq!(created.lines[0], OrderedLine { product: "bell".into(), quantity: 2 });
    }

    #[test]
    fn only_a_new_order_is_approved_or_rejected() {
        let mut approved = order();
        approved.approve().unwrap();
        approved.approve().unwrap();
        assert_eq!(approved.outbox.types(), ["order.created", "order.approved"], "it is announced once");
        assert_eq!(approved.reject(), Err(NotNew(OrderStatus::Approved)));

        let mut rejected = order();
        rejected.reject().unwrap();
        rejected.reject().unwrap();
        assert_eq!(rejected.outbox.types(), ["order.created", "order.rejected"]);
        assert_eq!(rejected.approve(), Err(NotNew(OrderStatus::Rejected)));

        let mut cancelled = order();
        cancelled.cancel().unwrap();
        assert_eq!(cancelled.approve(), Err(NotNew(OrderStatus::Cancelled)));
        assert_eq!(cancelled.reject(), Err(NotNew(OrderStatus::Cancelled)));
    }

    #[test]
    fn a_final_status_never_changes() {
        let mut rejected = order();
        rejected.reject().unwrap();
        rejected.cancel().unwrap();
        rejected.complete().unwrap();
        assert_eq!(rejected.status, OrderStatus::Rejected);

        let mut cancelled = order();
        cancelled.approve().unwrap();
        cancelled.cancel().unwrap();
        cancelled.complete().unwrap();
        assert_eq!(cancelled.status, OrderStatus::Cancelled);

        let mut completed = order();
        completed.approve().unwrap();
        completed.complete().unwrap();
        completed.cancel().unwrap();
        assert_eq!(completed.status, OrderStatus::Completed);
    }

    #[test]
    fn a_message_for_a_missing_order_fails_for_good() {
        let missing = || OrderRequest::missing("o-2".into());
        assert!(matches!(missing().cancel(), Err(HandlerError::Permanent(_))));
        assert!(matches!(missing().complete(), Err(HandlerError::Permanent(_))));
    }
}

//! The fulfillment of an order: a saga that gets stock for every line, or returns all of it.
//!
//! It begins with whichever message arrives first: the order was created, approved or rejected. Its id is the order's id, so
//! that each of these messages finds the same document. It ends as [`State::Completed`] or [`State::Cancelled`]; messages
//! that arrive later only return stock.

use std::time::Duration;

use document_outbox::{Aggregate, Inbox, Outbox, deliver::HandlerError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::messages::{
    ApprovalTimedOut, CancelOrderRequested, FulfillmentTimedOut, OrderCreated, OrderFulfilled, OrderId,
    OrderedLine, StockRequested, StockReturnRequested,
};

/// The time in which an approved order must get all its stock.
const FULFILL_WITHIN: Duration = Duration::from_hours(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Open,
    Cancelled,
    Completed,
}

/// What the fulfillment knows about the stock of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LineState {
    Requested,
    Confirmed,
    Denied,
    Returned,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FulfillmentLine {
    pub(crate) product: String,
    pub(crate) quantity: u32,
    pub(crate) state: LineState,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Aggregate)]
pub(crate) struct OrderFulfillment {
    /// The order's id.
    #[serde(rename = "_id")]
    pub(crate) order: OrderId,
    pub(crate) state: State,
    pub(crate) created: bool,
    pub(crate) approved: bool,
    pub(crate) rejected: bool,
    /// One line for each product, because an answer of the stock names only the order and the product.
    pub(crate) lines: Vec<FulfillmentLine>,
    /// The message that arrives if the current wait is too long. An open saga waits first for the approval, and then for
    /// the stock.
    pub(crate) time_out: Option<Uuid>,
    #[serde(default)]
    pub(crate) inbox: Inbox,
    #[serde(skip)]
    pub(crate) outbox: Outbox,
}

impl OrderFulfillment {
    pub(crate) fn begin(order: OrderId) -> Self {
        Self {
            order,
            state: State::Open,
            created: false,
            approved: false,
            rejected: false,
            lines: Vec::new(),
            time_out: None,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
        }
    }

    /// Requests stock for every product, unless the order was rejected already. Gives the clerk this much time to approve.
    /// A second creation changes nothing: the inbox does not recognise it if its message has another id.
    pub(crate) fn order_created(&mut self, created: &OrderCreated, approve_within: Duration) {
        let is_repeated = std::mem::replace(&mut self.created, true);
        if is_repeated || self.state != State::Open {
            return;
        }

        self.lines = one_line_for_each_product(&created.lines);
        for line in &self.lines {
            let (product, quantity) = (line.product.clone(), line.quantity);
            self.outbox.send(StockRequested { order: self.order.clone(), product, quantity });
        }
        if !self.approved {
            let time_out = ApprovalTimedOut { order: self.order.clone() };
            self.time_out = Some(self.outbox.send_after(time_out, approve_within).id());
        }
    }

    /// Completes the order, or waits for the rest of its stock. A second approval changes nothing.
    pub(crate) fn order_approved(&mut self) {
        let is_repeated = std::mem::replace(&mut self.approved, true);
        if is_repeated || self.state != State::Open {
            return;
        }

        self.stop_waiting();
        self.complete_if_possible();
        if self.state == State::Open {
            let time_out = FulfillmentTimedOut { order: self.order.clone() };
            self.time_out = Some(self.outbox.send_after(time_out, FULFILL_WITHIN).id());
        }
    }

    pub(crate) fn order_rejected(&mut self) {
        self.rejected = true;
        self.cancel();
    }

    /// No clerk has approved the order in time. After an approval this message has no effect.
    pub(crate) fn approval_timed_out(&mut self) -> Result<(), HandlerError> {
        self.must_be_created()?;
        if !self.approved {
            self.cancel();
        }
        Ok(())
    }

    /// An answer of the stock is missing, or the creation of an approved order. After the end of the saga this message has
    /// no effect.
    pub(crate) fn fulfillment_timed_out(&mut self) -> Result<(), HandlerError> {
        if !self.approved {
            return Err(HandlerError::permanent("the fulfillment does not wait for stock"));
        }
        self.cancel();
        Ok(())
    }

    /// Completes the order, or returns the stock if the order was cancelled meanwhile.
    pub(crate) fn stock_confirmed(&mut self, product: &str) -> Result<(), HandlerError> {
        self.must_be_created()?;
        self.answer(product, LineState::Confirmed);
        if self.state == State::Cancelled {
            self.return_stock();
        } else {
            self.complete_if_possible();
        }
        Ok(())
    }

    pub(crate) fn stock_denied(&mut self, product: &str) -> Result<(), HandlerError> {
        self.must_be_created()?;
        if self.answer(product, LineState::Denied) {
            self.cancel();
        }
        Ok(())
    }

    /// Whether no message can change anything any more: the saga has ended, and no stock is missing.
    pub(crate) fn is_finished(&self) -> bool {
        match self.state {
            State::Open => false,
            State::Completed => true,
            State::Cancelled => self.created && self.lines.iter().all(FulfillmentLine::is_settled),
        }
    }

    /// Refuses answers to questions that this saga never asked, so that they begin no saga.
    fn must_be_created(&self) -> Result<(), HandlerError> {
        if self.created { Ok(()) } else { Err(HandlerError::permanent("the fulfillment has not begun")) }
    }

    /// Records the answer for a product. Returns whether the saga has waited for it.
    fn answer(&mut self, product: &str, answer: LineState) -> bool {
        let is_meant =
            |line: &&mut FulfillmentLine| line.product == product && line.state == LineState::Requested;
        match self.lines.iter_mut().find(is_meant) {
            Some(line) => {
                line.state = answer;
                true
            }
            None => false,
        }
    }

    fn complete_if_possible(&mut self) {
        let is_confirmed = self.lines.iter().all(|line| line.state == LineState::Confirmed);
        if self.state == State::Open && self.created && self.approved && is_confirmed {
            self.state = State::Completed;
            self.stop_waiting();
            self.outbox.send(OrderFulfilled { order: self.order.clone() });
        }
    }

    /// Takes the time-out out of the outbox. If its delivery has begun, it arrives and changes nothing.
    fn stop_waiting(&mut self) {
        if let Some(time_out) = self.time_out.take() {
            self.outbox.cancel(time_out);
        }
    }

    /// Cancels once: asks the order to become cancelled, unless it was rejected, and returns confirmed stock.
    fn cancel(&mut self) {
        if self.state != State::Open {
            return;
        }

        self.state = State::Cancelled;
        self.stop_waiting();
        if !self.rejected {
            self.outbox.send(CancelOrderRequested { order: self.order.clone() });
        }
        self.return_stock();
    }

    fn return_stock(&mut self) {
        for line in &mut self.lines {
            if line.state == LineState::Confirmed {
                line.state = LineState::Returned;
                let (product, quantity) = (line.product.clone(), line.quantity);
                self.outbox.send(StockReturnRequested { order: self.order.clone(), product, quantity });
            }
        }
    }
}

/// Adds up the quantities of each product.
fn one_line_for_each_product(ordered: &[OrderedLine]) -> Vec<FulfillmentLine> {
    let mut lines: Vec<FulfillmentLine> = Vec::new();
    for OrderedLine { product, quantity } in ordered {
        match lines.iter_mut().find(|line| line.product == *product) {
            Some(line) => line.quantity = line.quantity.saturating_add(*quantity),
            None => lines.push(FulfillmentLine {
                product: product.clone(),
                quantity: *quantity,
                state: LineState::Requested,
            }),
        }
    }
    lines
}

impl FulfillmentLine {
    fn is_settled(&self) -> bool {
        matches!(self.state, LineState::Denied | LineState::Returned)
    }
}

#[cfg(test)]
mod tests {
    use document_outbox::Revision;

    use super::*;

    const ORDER: &str = "o-7";
    const HOUR: Duration = Duration::from_hours(1);

    fn line(product: &str, quantity: u32) -> OrderedLine {
        OrderedLine { product: product.into(), quantity }
    }

    fn created() -> OrderCreated {
        OrderCreated { order: ORDER.into(), lines: vec![line("bell", 2), line("bike", 2)] }
    }

    /// A saga that has requested stock. Its messages so far are left out.
    fn waiting() -> OrderFulfillment {
        let mut saga = OrderFulfillment::begin(ORDER.into());
        saga.order_created(&created(), HOUR);
        saga.outbox = Outbox::default();
        saga
    }

    /// Like [`waiting`], but approved.
    fn waiting_for_stock() -> OrderFulfillment {
        let mut saga = waiting();
        saga.order_approved();
        saga.outbox = Outbox::default();
        saga
    }

    fn states(saga: &OrderFulfillment) -> Vec<LineState> {
        saga.lines.iter().map(|line| line.state).collect()
    }

    #[test]
    fn every_line_is_requested_and_the_approval_has_a_deadline() {
        let mut saga = OrderFulfillment::begin(ORDER.into());
        saga.order_created(&created(), HOUR);
        let types = ["stock.requested", "stock.requested", "order.approval_timed_out"];
        assert_eq!(saga.outbox.types(), types);
        let timeout = saga.outbox.iter().last().unwrap();
        assert_eq!(timeout.due(), document_outbox::Due::After(HOUR));
        assert_eq!(saga.time_out, Some(timeout.id()));
    }

    #[test]
    fn a_second_creation_requests_nothing_again() {
        let mut saga = waiting();
        saga.order_created(&created(), HOUR);
        assert!(saga.outbox.is_empty(), "{:?}", saga.outbox.types());
        assert_eq!(states(&saga), [LineState::Requested; 2]);

        saga.stock_confirmed("bell").unwrap();
        saga.order_rejected();
        saga.order_created(&created(), HOUR);
        assert_eq!(saga.outbox.types(), ["stock.return_requested"]);
    }

    #[test]
    fn two_lines_of_one_product_are_one_request() {
        let lines = vec![line("bell", 2), line("bike", 1), line("bell", 3)];
        let mut saga = OrderFulfillment::begin(ORDER.into());
        saga.order_created(&OrderCreated { order: ORDER.into(), lines }, HOUR);
        let requests = saga.outbox.sent::<StockRequested>();
        let requested: Vec<_> = requests.iter().map(|sent| (sent.product.as_str(), sent.quantity)).collect();
        assert_eq!(requested, [("bell", 5), ("bike", 1)]);

        saga.stock_confirmed("bell").unwrap();
        saga.stock_denied("bike").unwrap();
        let returned = saga.outbox.sent::<StockReturnRequested>();
        assert_eq!(returned.len(), 1);
        assert_eq!((returned[0].product.as_str(), returned[0].quantity), ("bell", 5));
        assert!(saga.is_finished());
    }

    #[test]
    fn it_completes_when_confirmed_and_approved_in_any_order() {
        let steps: [fn(&mut OrderFulfillment); 3] = [
            |saga| saga.stock_confirmed("bell").unwrap(),
            |saga| saga.stock_confirmed("bike").unwrap(),
            OrderFulfillment::order_approved,
        ];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut saga = waiting();
            for (nth, step) in order.into_iter().enumerate() {
                assert!(nth == 0 || saga.state == State::Open, "{order:?}");
                steps[step](&mut saga);
            }
            assert_eq!(saga.outbox.types(), ["order.fulfilled"], "{order:?}");
            assert!(saga.state == State::Completed && saga.is_finished());
        }
    }

    #[test]
    fn an_approval_may_arrive_before_the_creation() {
        let mut saga = OrderFulfillment::begin(ORDER.into());
        saga.order_approved();
        assert_eq!(saga.outbox.types(), ["order.fulfillment_timed_out"], "the lines are not known yet");
        assert!(!saga.is_finished());
        saga.outbox = Outbox::default();
        saga.order_created(&created(), HOUR);
        assert_eq!(saga.outbox.types(), ["stock.requested", "stock.requested"], "it waits for no approval");
        saga.stock_confirmed("bell").unwrap();
        saga.stock_confirmed("bike").unwrap();
        assert_eq!(saga.state, State::Completed);
    }

    #[test]
    fn a_denial_cancels_once_and_returns_confirmed_lines() {
        let mut saga = waiting();
        saga.stock_confirmed("bell").unwrap();
        saga.stock_denied("bike").unwrap();
        assert_eq!(saga.outbox.types(), ["order.cancel_requested", "stock.return_requested"]);
        let returned = &saga.outbox.sent::<StockReturnRequested>()[0];
        assert_eq!((returned.product.as_str(), returned.quantity), ("bell", 2));
        assert_eq!(states(&saga), [LineState::Returned, LineState::Denied]);
        assert!(saga.is_finished());

        saga.order_approved();
        saga.approval_timed_out().unwrap();
        saga.order_rejected();
        assert_eq!(saga.outbox.len(), 2, "each request is sent once");
        assert_eq!(saga.state, State::Cancelled);
    }

    #[test]
    fn two_denials_cancel_once() {
        let mut saga = waiting();
        saga.stock_denied("bell").unwrap();
        saga.stock_denied("bike").unwrap();
        assert_eq!(saga.outbox.types(), ["order.cancel_requested"]);
    }

    #[test]
    fn a_confirmation_after_the_cancellation_is_returned() {
        let mut saga = waiting();
        saga.stock_denied("bike").unwrap();
        assert!(!saga.is_finished(), "a line is not answered yet");
        saga.stock_confirmed("bell").unwrap();
        assert_eq!(saga.outbox.types(), ["order.cancel_requested", "stock.return_requested"]);
        assert!(saga.is_finished());
    }

    #[test]
    fn a_rejection_returns_stock_without_asking_to_cancel() {
        let mut saga = waiting();
        saga.stock_confirmed("bell").unwrap();
        saga.stock_confirmed("bike").unwrap();
        saga.order_rejected();
        assert_eq!(saga.outbox.types(), ["stock.return_requested", "stock.return_requested"]);
        assert!(saga.is_finished());
    }

    #[test]
    fn a_rejection_before_the_creation_requests_nothing() {
        let mut saga = OrderFulfillment::begin(ORDER.into());
        saga.order_rejected();
        assert!(!saga.is_finished(), "the creation is still on its way");
        saga.order_created(&created(), HOUR);
        assert!(saga.outbox.is_empty() && saga.is_finished());
    }

    #[test]
    fn without_an_approval_the_order_is_cancelled_in_time() {
        let mut saga = waiting();
        saga.stock_confirmed("bell").unwrap();
        saga.stock_confirmed("bike").unwrap();
        saga.approval_timed_out().unwrap();
        let types = ["order.cancel_requested", "stock.return_requested", "stock.return_requested"];
        assert_eq!(saga.outbox.types(), types);
        saga.order_approved();
        assert_eq!(saga.state, State::Cancelled, "the approval is too late");
    }

    #[test]
    fn each_end_of_the_saga_cancels_its_time_out() {
        let ends: [fn(&mut OrderFulfillment); 3] = [
            OrderFulfillment::order_rejected,
            |saga| saga.stock_denied("bike").unwrap(),
            |saga| {
                saga.stock_confirmed("bell").unwrap();
                saga.stock_confirmed("bike").unwrap();
            },
        ];
        for end in ends {
            let mut saga = waiting_for_stock();
            let time_out = saga.time_out.unwrap();
            end(&mut saga);
            assert_ne!(saga.state, State::Open);
            assert_eq!(saga.outbox.revisions(), [Revision::Cancel(time_out)]);
            assert_eq!(saga.time_out, None);
        }
    }

    #[test]
    fn a_cancellation_before_the_approval_cancels_its_time_out() {
        let mut saga = waiting();
        let time_out = saga.time_out.unwrap();
        saga.stock_denied("bike").unwrap();
        assert_eq!(saga.outbox.revisions(), [Revision::Cancel(time_out)]);
    }

    #[test]
    fn an_approval_exchanges_the_time_out_once() {
        let mut saga = waiting();
        let before = saga.time_out.unwrap();
        saga.order_approved();
        assert_eq!(saga.outbox.revisions(), [Revision::Cancel(before)]);
        assert_eq!(saga.outbox.types(), ["order.fulfillment_timed_out"]);
        let time_out = saga.outbox.iter().next().unwrap();
        assert_eq!(time_out.due(), document_outbox::Due::After(FULFILL_WITHIN));
        assert_eq!(saga.time_out, Some(time_out.id()));

        saga.outbox = Outbox::default();
        saga.order_approved();
        assert!(saga.outbox.is_empty() && saga.outbox.revisions().is_empty(), "a second approval");
    }

    #[test]
    fn stock_that_never_answers_cancels_an_approved_order() {
        let mut saga = waiting_for_stock();
        saga.stock_confirmed("bell").unwrap();
        saga.fulfillment_timed_out().unwrap();
        assert_eq!(saga.outbox.types(), ["order.cancel_requested", "stock.return_requested"]);
        assert!(saga.state == State::Cancelled && !saga.is_finished(), "the bike may still be confirmed");
        saga.stock_confirmed("bike").unwrap();
        assert_eq!(states(&saga), [LineState::Returned; 2]);
        assert!(saga.is_finished());
    }

    #[test]
    fn an_approved_order_without_a_creation_is_cancelled() {
        let mut saga = OrderFulfillment::begin(ORDER.into());
        saga.order_approved();
        saga.outbox = Outbox::default();
        saga.fulfillment_timed_out().unwrap();
        assert_eq!(saga.outbox.types(), ["order.cancel_requested"]);
        saga.order_created(&created(), HOUR);
        assert_eq!(saga.outbox.len(), 1, "no stock is requested");
        assert!(saga.is_finished());
    }

    #[test]
    fn a_late_time_out_is_harmless() {
        let mut saga = waiting();
        saga.order_approved();
        saga.approval_timed_out().unwrap();
        assert_eq!(saga.state, State::Open);
        saga.stock_confirmed("bell").unwrap();
        saga.stock_confirmed("bike").unwrap();
        saga.approval_timed_out().unwrap();
        saga.fulfillment_timed_out().unwrap();
        assert_eq!(saga.state, State::Completed);
        assert_eq!(saga.outbox.types(), ["order.fulfilled"]);
    }

    #[test]
    fn an_answer_without_a_question_begins_no_saga() {
        let begin = || OrderFulfillment::begin(ORDER.into());
        for refused in [
            begin().stock_confirmed("bell"),
            begin().stock_denied("bell"),
            begin().approval_timed_out(),
            begin().fulfillment_timed_out(),
        ] {
            assert!(matches!(refused, Err(HandlerError::Permanent(_))));
        }
    }

    #[test]
    fn an_answer_for_a_strange_product_changes_nothing() {
        let mut saga = waiting_for_stock();
        saga.stock_confirmed("car").unwrap();
        saga.stock_denied("car").unwrap();
        assert!(saga.outbox.is_empty() && states(&saga) == [LineState::Requested; 2]);
    }
}

//! The pages. `maud` escapes every value.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use mongodb::bson::{Bson, Document};
use uuid::Uuid;

use super::{
    cart::Cart,
    fulfillment::{LineState, OrderFulfillment, State},
    order::{OrderRequest, OrderStatus},
    products::{Product, price},
};

const STYLE: &str = include_str!("style.css");

/// Everything that the page of an order shows.
pub(crate) struct OrderView {
    pub(crate) order: OrderRequest,
    pub(crate) fulfillment: Option<OrderFulfillment>,
    pub(crate) traffic: Vec<Traffic>,
}

/// The outbox and the inbox of a stored document.
pub(crate) struct Traffic {
    collection: &'static str,
    title: String,
    /// The type of each message in the outbox, and the state of its delivery.
    outbox: Vec<(String, &'static str)>,
    received: usize,
}

impl Traffic {
    pub(crate) fn of(collection: &'static str, title: &str, stored: &Document) -> Self {
        let mut outbox = Vec::new();
        for entry in stored.get_array("outbox").into_iter().flatten().filter_map(Bson::as_document) {
            let message_type = entry.get_str("type").unwrap_or("unreadable").to_owned();
            let is_ahead =
                entry.get_datetime("available_at").is_ok_and(|at| *at > mongodb::bson::DateTime::now());
            let state = if entry.contains_key("dead_at") {
                "dead"
            } else if !is_ahead {
                "due"
            } else if entry.contains_key("claimed_by") {
                "being delivered"
            } else if entry.contains_key("attempts") {
                "retrying"
            } else {
                "scheduled"
            };
            outbox.push((message_type, state));
        }
        let received = stored.get_array("inbox").map_or(0, Vec::len);
        Self { collection, title: title.to_owned(), outbox, received }
    }
}

fn page(title: &str, cart: &Cart, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " – Adventure Works" }
                style { (PreEscaped(STYLE)) }
                script src="/live.js" defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a.brand href="/" { "Adventure Works" }
                    nav aria-label="Shop" {
                        a href="/" { "Products" }
                        a href="/orders" { "Orders" }
                        a href="/cart" { "Cart (" (cart.count()) ")" }
                    }
                }
                main id="main" { h1 { (title) } (content) }
            }
        }
    }
}

pub(crate) fn sorry(reason: &str) -> Markup {
    page(
        "Sorry",
        &Cart::default(),
        &html! { p role="alert" { (reason) } p { a href="/orders" { "All orders" } } },
    )
}

pub(crate) fn products(available: &[(&'static Product, u32)], cart: &Cart) -> Markup {
    let list = html! {
        ul.products {
            @for (product, available) in available {
                li {
                    h2 { (product.name) }
                    p { (product.about) }
                    p { strong { (price(product.cents.into())) } " · " (available) " in stock" }
                    form method="post" action="/cart" {
                        input type="hidden" name="product" value=(product.id);
                        label { "Quantity " input type="number" name="quantity" value="1" min="1" max="99" required; }
                        button { "Add to cart" span.hidden { ": " (product.name) } }
                    }
                }
            }
        }
    };
    page("Products", cart, &list)
}

pub(crate) fn cart(cart: &Cart, order: Uuid) -> Markup {
    let lines = cart.lines();
    let cents: u64 = lines.iter().map(|line| u64::from(line.cents) * u64::from(line.quantity)).sum();
    let content = html! {
        @if lines.is_empty() {
            p { "The cart is empty. " a href="/" { "See the products" } }
        } @else {
            table {
                thead { tr { th scope="col" { "Product" } th.number scope="col" { "Quantity" } th.number scope="col" { "Price" } th {} } }
                tbody {
                    @for line in &lines {
                        tr {
                            td { (line.name) }
                            td.number { (line.quantity) }
                            td.number { (price(u64::from(line.cents) * u64::from(line.quantity))) }
                            td {
                                form method="post" action="/cart/remove" {
                                    input type="hidden" name="product" value=(line.product);
                                    button.quiet { "Remove" span.hidden { ": " (line.name) } }
                                }
                            }
                        }
                    }
                }
                tfoot { tr { th scope="row" { "Total" } td {} td.number { (price(cents)) } td {} } }
            }
            form.checkout method="post" action="/orders" {
                input type="hidden" name="order" value=(order);
                label { "Your name " input name="customer" autocomplete="name" maxlength="80" required; }
                button id="check-out" { "Check out" }
            }
        }
    };
    page("Cart", cart, &content)
}

pub(crate) fn orders(orders: &[OrderRequest], cart: &Cart) -> Markup {
    let content = html! {
        @if orders.is_empty() {
            p { "There are no orders yet." }
        } @else {
            table {
                thead { tr { th scope="col" { "Order" } th scope="col" { "Customer" } th.number scope="col" { "Total" } th scope="col" { "Status" } } }
                tbody {
                    @for order in orders {
                        tr {
                            td { a href={ "/orders/" (order.id) } { (order.id) } }
                            td { (order.customer) }
                            td.number { (price(order.cents)) }
                            td { (status(order.status)) }
                        }
                    }
                }
            }
        }
    };
    page("Orders", cart, &content)
}

pub(crate) fn order(view: &OrderView, cart: &Cart) -> Markup {
    let content = html! {
        div id="live" aria-live="polite" { (live(view)) }
        noscript { p { a href={ "/orders/" (view.order.id) } { "Refresh" } } }
    };
    page("Order", cart, &content)
}

/// The part of an order's page that changes while the saga runs.
pub(crate) fn live(view: &OrderView) -> Markup {
    let order = &view.order;
    html! {
        section aria-labelledby="the-order" {
            h2 id="the-order" { "Order of " (order.customer) " " (status(order.status)) }
            p.faint { (order.id) }
            table {
                thead { tr { th scope="col" { "Product" } th.number scope="col" { "Quantity" } th.number scope="col" { "Price" } th scope="col" { "Stock" } } }
                tbody {
                    @for line in &order.lines {
                        tr {
                            td { (line.name) }
                            td.number { (line.quantity) }
                            td.number { (price(u64::from(line.cents) * u64::from(line.quantity))) }
                            td { (stock_of(view, &line.product)) }
                        }
                    }
                }
                tfoot { tr { th scope="row" { "Total" } td {} td.number { (price(order.cents)) } td {} } }
            }
            @if order.status == OrderStatus::New {
                div.decision {
                    form method="post" action={ "/orders/" (order.id) "/approve" } { button id="approve" { "Approve" } }
                    form method="post" action={ "/orders/" (order.id) "/reject" } { button.quiet id="reject" { "Reject" } }
                }
            }
        }
        (saga(view.fulfillment.as_ref()))
        section aria-labelledby="messages" {
            h2 id="messages" { "Outboxes and inboxes" }
            table {
                thead { tr { th scope="col" { "Document" } th scope="col" { "Outbox" } th.number scope="col" { "Inbox" } } }
                tbody {
                    @for traffic in &view.traffic {
                        tr {
                            td { (traffic.title) " " span.faint { (traffic.collection) } }
                            td {
                                @if traffic.outbox.is_empty() { span.faint { "empty" } }
                                @for (message_type, state) in &traffic.outbox {
                                    span.message { code { (message_type) } " " (state) }
                                }
                            }
                            td.number { (traffic.received) }
                        }
                    }
                }
            }
        }
    }
}

fn saga(fulfillment: Option<&OrderFulfillment>) -> Markup {
    let steps = |saga: &OrderFulfillment| {
        [("created", saga.created), ("approved", saga.approved), ("rejected", saga.rejected)]
    };
    html! {
        section aria-labelledby="saga" {
            h2 id="saga" { "Fulfillment" }
            @if let Some(saga) = fulfillment {
                p {
                    @match saga.state {
                        State::Open => span.badge { "Open" },
                        State::Cancelled => span.badge.bad { "Cancelled" },
                        State::Completed => span.badge.good { "Completed" },
                    }
                    @if saga.is_finished() { " It has ended." } @else { " It waits for messages." }
                }
                ul.steps {
                    @for (step, is_done) in steps(saga) {
                        li.done[is_done] { (step) ": " (if is_done { "yes" } else { "no" }) }
                    }
                }
            } @else {
                p { "The fulfillment has not begun." }
            }
        }
    }
}

fn stock_of(view: &OrderView, product: &str) -> &'static str {
    let Some(saga) = &view.fulfillment else { return "not requested" };
    let line = saga.lines.iter().find(|line| line.product == product);
    match line.map(|line| line.state) {
        None => "not requested",
        Some(LineState::Requested) => "requested",
        Some(LineState::Confirmed) => "confirmed",
        Some(LineState::Denied) => "denied",
        Some(LineState::Returned) => "returned",
    }
}

fn status(status: OrderStatus) -> Markup {
    html! {
        @match status {
            OrderStatus::New => span.badge { "New" },
            OrderStatus::Approved => span.badge { "Approved" },
            OrderStatus::Rejected => span.badge.bad { "Rejected" },
            OrderStatus::Cancelled => span.badge.bad { "Cancelled" },
            OrderStatus::Completed => span.badge.good { "Completed" },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_cannot_put_html_into_a_page() {
        let name = "<script>alert('x')</script>".to_owned();
        let order = OrderRequest::check_out("o-1".into(), name, Vec::new());
        let view = OrderView { order, fulfillment: None, traffic: Vec::new() };
        for page in [
            order_page(&view),
            live(&view).into_string(),
            orders(&[view.order], &Cart::default()).into_string(),
        ] {
            assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert"), "{page}");
        }
    }

    fn order_page(view: &OrderView) -> String {
        order(view, &Cart::default()).into_string()
    }

    #[test]
    fn only_a_new_order_can_be_decided() {
        let order = OrderRequest::check_out("o-1".into(), "Ada".into(), Vec::new());
        let mut view = OrderView { order, fulfillment: None, traffic: Vec::new() };
        assert!(order_page(&view).contains(r#"id="approve""#));
        view.order.status = OrderStatus::Approved;
        assert!(!order_page(&view).contains(r#"id="approve""#));
    }
}

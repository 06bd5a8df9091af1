//! The screens: which page a request gets.

use axum::{
    Form, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use document_outbox::{Error, store::Inserted};
use futures::TryStreamExt;
use maud::Markup;
use mongodb::bson::{Document, doc};
use serde::Deserialize;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{
    cart::Cart,
    messages::OrderId,
    order::{NotNew, OrderRequest},
    pages::{self, OrderView, Traffic},
    products::PRODUCTS,
    stores::Stores,
};

/// The number of orders on the page of all orders.
const LATEST: i64 = 50;
const SCRIPT: &str = include_str!("live.js");
/// Pages have inline styles and load one script of their own.
const CONTENT_POLICY: &str =
    "default-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'";

#[derive(Clone)]
struct App {
    stores: Stores,
    /// Saves that continue although the browser has left.
    saves: TaskTracker,
}

pub(crate) fn screens(stores: Stores, saves: TaskTracker) -> Router {
    Router::new()
        .route("/", get(products))
        .route("/cart", get(cart).post(add_to_cart))
        .route("/cart/remove", post(remove_from_cart))
        .route("/orders", get(orders).post(check_out))
        .route("/orders/{id}", get(order))
        .route("/orders/{id}/live", get(live))
        .route("/orders/{id}/approve", post(approve))
        .route("/orders/{id}/reject", post(reject))
        .route("/live.js", get(script))
        .with_state(App { stores, saves })
}

/// A page for a request that failed.
struct Sorry(StatusCode, String);

impl IntoResponse for Sorry {
    fn into_response(self) -> Response {
        (self.0, with_policy(pages::sorry(&self.1))).into_response()
    }
}

impl From<Error> for Sorry {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound { .. } => no_such_order(),
            Error::Unknown { .. } => Self(
                StatusCode::GATEWAY_TIMEOUT,
                "It is not known whether this was saved. Check the order before you try again.".into(),
            ),
            error if error.is_transient() => {
                Self(StatusCode::SERVICE_UNAVAILABLE, "The shop is busy. Please try again.".into())
            }
            _ => Self(StatusCode::INTERNAL_SERVER_ERROR, "Something is wrong with this order.".into()),
        }
    }
}

impl From<mongodb::error::Error> for Sorry {
    fn from(_: mongodb::error::Error) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, "The database does not answer. Please try again.".into())
    }
}

impl From<NotNew> for Sorry {
    fn from(error: NotNew) -> Self {
        Self(StatusCode::CONFLICT, format!("This is not possible: {error}."))
    }
}

fn no_such_order() -> Sorry {
    Sorry(StatusCode::NOT_FOUND, "There is no such order.".into())
}

fn with_policy(page: Markup) -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY)], page)
}

fn cart_of(headers: &HeaderMap) -> Cart {
    let cookies = headers.get(header::COOKIE).and_then(|value| value.to_str().ok());
    Cart::of_cookies(cookies.unwrap_or_default())
}

fn to_cart(cart: &Cart) -> Response {
    ([(header::SET_COOKIE, cart.cookie())], Redirect::to("/cart")).into_response()
}

async fn script() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript")], SCRIPT)
}

async fn products(State(app): State<App>, headers: HeaderMap) -> Result<impl IntoResponse, Sorry> {
    let mut available = Vec::new();
    for product in &PRODUCTS {
        let stock = app.stores.stocks.load(product.id).await?;
        available.push((product, stock.map_or(0, |stock| stock.available)));
    }
    Ok(with_policy(pages::products(&available, &cart_of(&headers))))
}

async fn cart(headers: HeaderMap) -> impl IntoResponse {
    // The order's id is in the form, so that a form that is sent twice makes one order.
    with_policy(pages::cart(&cart_of(&headers), Uuid::now_v7()))
}

#[derive(Deserialize)]
struct Item {
    product: String,
    #[serde(default)]
    quantity: u32,
}

async fn add_to_cart(headers: HeaderMap, Form(item): Form<Item>) -> impl IntoResponse {
    let mut cart = cart_of(&headers);
    cart.add(&item.product, item.quantity);
    to_cart(&cart)
}

async fn remove_from_cart(headers: HeaderMap, Form(item): Form<Item>) -> impl IntoResponse {
    let mut cart = cart_of(&headers);
    cart.remove(&item.product);
    to_cart(&cart)
}

#[derive(Deserialize)]
struct Checkout {
    order: Uuid,
    customer: String,
}

async fn check_out(
    State(app): State<App>,
    headers: HeaderMap,
    Form(checkout): Form<Checkout>,
) -> Result<Response, Sorry> {
    let lines = cart_of(&headers).lines();
    let id = checkout.order.to_string();
    let here = format!("/orders/{id}");
    if lines.is_empty() {
        // A repeated form arrives with an empty cart.
        let exists = app.stores.orders.load(&id).await?.is_some();
        let to = if exists { &here } else { "/cart" };
        return Ok(Redirect::to(to).into_response());
    }

    let order = OrderRequest::check_out(id, checkout.customer.trim().to_owned(), lines);
    let orders = app.stores.orders.clone();
    let inserted = run(&app, async move { orders.insert(order).await }).await??;
    match inserted {
        Inserted::Applied(..) => Ok(placed(&here)),
        Inserted::Exists(order) => {
            let stored = app.stores.orders.load(&order.id).await?.ok_or_else(no_such_order)?;
            if stored.lines == order.lines {
                Ok(placed(&here))
            } else {
                // The form is old: its order has other items. The cart's page has a form for a new order.
                Ok(Redirect::to("/cart").into_response())
            }
        }
        Inserted::Unknown(..) => Err(Sorry(
            StatusCode::GATEWAY_TIMEOUT,
            "It is not known whether the order was saved. Send the form again: it makes no second order."
                .into(),
        )),
    }
}

/// Empties the cart, and leads to the order.
fn placed(order: &str) -> Response {
    ([(header::SET_COOKIE, Cart::default().cookie())], Redirect::to(order)).into_response()
}

/// Runs a save to its end, even if the browser closes the connection.
async fn run<T: Send + 'static>(
    app: &App,
    save: impl Future<Output = T> + Send + 'static,
) -> Result<T, Sorry> {
    let crashed = |_| Sorry(StatusCode::INTERNAL_SERVER_ERROR, "The save has crashed.".into());
    app.saves.spawn(save).await.map_err(crashed)
}

async fn approve(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Redirect, Sorry> {
    Box::pin(decide(app, id.to_string(), OrderRequest::approve)).await
}

async fn reject(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Redirect, Sorry> {
    Box::pin(decide(app, id.to_string(), OrderRequest::reject)).await
}

async fn decide(
    app: App,
    id: OrderId,
    decision: fn(&mut OrderRequest) -> Result<(), NotNew>,
) -> Result<Redirect, Sorry> {
    let orders = app.stores.orders.clone();
    let here = format!("/orders/{id}");
    run(&app, async move { orders.try_update(&id, decision).await }).await???;
    Ok(Redirect::to(&here))
}

async fn orders(State(app): State<App>, headers: HeaderMap) -> Result<impl IntoResponse, Sorry> {
    let orders = app.stores.orders.collection().clone_with_type::<OrderRequest>();
    // Ids of version 7 begin with the time.
    let found = orders.find(doc! {}).sort(doc! { "_id": -1 }).limit(LATEST).await?;
    let orders: Vec<_> = found.try_collect().await?;
    Ok(with_policy(pages::orders(&orders, &cart_of(&headers))))
}

async fn order(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<impl IntoResponse, Sorry> {
    Ok(with_policy(pages::order(&view(&app.stores, id.to_string()).await?, &cart_of(&headers))))
}

/// The part of the page that a script replaces.
async fn live(State(app): State<App>, Path(id): Path<Uuid>) -> Result<impl IntoResponse, Sorry> {
    Ok(with_policy(pages::live(&view(&app.stores, id.to_string()).await?)))
}

async fn view(stores: &Stores, id: OrderId) -> Result<OrderView, Sorry> {
    let order = stores.orders.load(&id).await?.ok_or_else(no_such_order)?.into_inner();
    let fulfillment = stores.fulfillments.load(&id).await?.map(document_outbox::Loaded::into_inner);

    let of_id = || doc! { "_id": &id };
    let orders = stores.orders.collection().clone_with_type();
    let fulfillments = stores.fulfillments.collection().clone_with_type();
    let mut traffic = vec![
        self::traffic("orders", "Order", orders, of_id()).await?,
        self::traffic("fulfillments", "Fulfillment", fulfillments, of_id()).await?,
    ];
    for line in &order.lines {
        let stocks = stores.stocks.collection().clone_with_type();
        let of = doc! { "_id": &line.product };
        traffic.push(self::traffic("stocks", &format!("Stock of {}", line.name), stocks, of).await?);
    }
    Ok(OrderView { order, fulfillment, traffic })
}

/// Reads the outbox and the inbox of a document, as they are stored.
async fn traffic(
    collection: &'static str,
    title: &str,
    stored: mongodb::Collection<Document>,
    filter: Document,
) -> Result<Traffic, Sorry> {
    let fields = doc! { "outbox": 1, "inbox": 1 };
    let found = stored.find_one(filter).projection(fields).await?.unwrap_or_default();
    Ok(Traffic::of(collection, title, &found))
}

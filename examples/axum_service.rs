//! Serves saves behind axum, with status codes and a graceful stop: `cargo run --example axum_service`.
use axum::{Router, extract::Path, extract::State, http::StatusCode, routing::get, routing::post};
use document_outbox::{Aggregate, Error, InlineDispatcher, Message, Outbox, Store, deliver::Handlers};
use tokio::{net::TcpListener, signal::unix::SignalKind, signal::unix::signal};

#[derive(serde::Serialize, serde::Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(serde::Serialize, serde::Deserialize, Message)]
#[message(type = "order.paid")]
struct OrderPaid(String);

const UNREADY: StatusCode = StatusCode::SERVICE_UNAVAILABLE; // broker outages don't count: saves continue
type App = (Store<Order>, tokio_util::task::TaskTracker);

async fn pay(State((orders, saves)): State<App>, Path(id): Path<String>) -> StatusCode {
    // axum drops this future when the client hangs up. A separate task still completes the save.
    let pay = |order: &mut Order| order.outbox.send(OrderPaid(order.id.clone())).id();
    match saves.spawn(async move { orders.update(&id, pay).await }).await {
        Ok(Ok(_)) => StatusCode::NO_CONTENT,
        Ok(Err(Error::NotFound { .. })) => StatusCode::NOT_FOUND,
        Ok(Err(Error::Unknown { .. })) => StatusCode::GATEWAY_TIMEOUT, // the order may be paid: load it to find out
        Ok(Err(error)) if error.is_transient() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = mongodb::Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let handlers = Handlers::builder().on("ship", |_: OrderPaid, _| async { Ok(()) }).build()?;
    let inline = InlineDispatcher::builder(&client).deliver_to(handlers);
    let orders = Store::<Order>::new(client.database("example_axum").collection::<Order>("orders"), &inline);
    let (saves, mut stop) = (tokio_util::task::TaskTracker::new(), signal(SignalKind::terminate())?);
    let ready = |State(app): State<App>| async move { app.0.load("").await.map(drop).map_err(|_| UNREADY) };
    let app = Router::new().route("/ready", get(ready)).route("/orders/{id}/pay", post(pay));
    let listener = TcpListener::bind(std::env::var("LISTEN").unwrap_or("127.0.0.1:8080".into())).await?;
    println!("listening on {}", listener.local_addr()?);
    let server = axum::serve(listener, app.with_state((orders, saves.clone())));
    server.with_graceful_shutdown(async move { stop.recv().await.unwrap_or_default() }).await?;
    saves.close();
    saves.wait().await;
    inline.close(std::time::Duration::from_secs(10)).await;
    Ok(())
}

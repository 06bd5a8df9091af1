//! The output of `outbox-dispatcher` shows no password and no payload.

use lapin::options::ExchangeDeleteOptions;

use crate::world::{Service, World, said_by};

const BINARY: &str = env!("CARGO_BIN_EXE_outbox-dispatcher");

#[tokio::test]
async fn the_dispatchers_output_shows_no_secret() {
    let world = World::begin().await;
    let messages = format!("{}_messages", world.name);
    let own =
        [("MESSAGES_EXCHANGE", messages.as_str()), ("MAX_ATTEMPTS", "1"), ("UNROUTABLE_OK", "order.paid")];
    let own = own.map(|(key, value)| (format!("OUTBOX_{key}"), value.to_owned()));
    let settings = |wrong| [world.settings(wrong), own.to_vec()].concat();

    let mut service = Service::start(BINARY, &settings(None));
    service.ready().await;
    world.store("o-1", "order.placed").await;
    world.store("o-2", "order.paid").await;
    world.command("o-2").await;
    world.command("o-1").await;
    // No queue is bound for the message, so RabbitMQ returns it whole.
    service.line_with("a message is dead");
    world.publish(world.payload.as_bytes()).await;
    service.line_with("a command was refused");
    let mut said = service.stop();
    assert!(said.contains(r#""level":"DEBUG""#), "everything is logged: {said}");

    let mut service = Service::start(BINARY, &settings(Some("OUTBOX_MONGODB_URI")));
    service.line_with("uthentication failed");
    said.push_str(&service.end().1);
    let mut service = Service::start(BINARY, &settings(Some("OUTBOX_RABBITMQ_URI")));
    service.line_with("ACCESS_REFUSED");
    said.push_str(&service.end().1);

    for args in
        [&["config", "check"][..], &["config", "sample"], &["config", "schema"], &["--help"], &["--nope"]]
    {
        said.push_str(&said_by(BINARY, args, &settings(None)));
    }
    world.assert_shows_no_secret(&said);
    world.outside.exchange_delete(messages.into(), ExchangeDeleteOptions::default()).await.unwrap();
    world.end().await;
}

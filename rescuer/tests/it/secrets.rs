//! The output of `outbox-rescuer` shows no password and no payload.

use crate::world::{Service, World, said_by};

const BINARY: &str = env!("CARGO_BIN_EXE_outbox-rescuer");

#[tokio::test]
async fn the_rescuer_prints_neither_passwords_nor_payloads() {
    let world = World::begin().await;
    world.store("o-1", "order.placed").await;
    let mut settings = world.settings(None);
    let quick = [("DELAY", "1s"), ("SWEEP_INTERVAL", "100ms")];
    settings.extend(quick.map(|(key, value)| (format!("OUTBOX_{key}"), value.to_owned())));
    let mut service = Service::start(BINARY, &settings);
    service.ready().await;
    service.line_with("an outbox has malformed elements");
    world.command_arrives().await;
    let mut said = service.stop();
    assert!(said.contains(r#""level":"DEBUG""#), "everything is logged: {said}");
    for (server, refusal) in
        [("OUTBOX_MONGODB_URI", "uthentication failed"), ("OUTBOX_RABBITMQ_URI", "ACCESS_REFUSED")]
    {
        let mut service = Service::start(BINARY, &world.settings(Some(server)));
        service.line_with(refusal);
        said.push_str(&service.end().1);
    }
    for args in
        [&["config", "check"][..], &["config", "sample"], &["config", "schema"], &["--help"], &["--nope"]]
    {
        said.push_str(&said_by(BINARY, args, &settings));
    }
    world.assert_shows_no_secret(&said);
    world.end().await;
}

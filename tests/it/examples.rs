//! Tests that each program of examples/ runs to its end on the real servers, and stays short. The quickstart
//! is tested as a separate crate in `readme.rs`.

use std::{
    error::Error,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
};

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use mongodb::{Client, bson::doc};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{ChildStdout, Command as Program},
    time::timeout,
};

use crate::support::{LONG, uri};

#[path = "../../examples/axum_service.rs"]
mod axum_service;
#[path = "../../examples/change_of_mind.rs"]
mod change_of_mind;
#[path = "../../examples/consumer.rs"]
mod consumer;
#[path = "../../examples/in_process.rs"]
mod in_process;
#[path = "../../examples/inbox.rs"]
mod inbox;
#[path = "../../examples/migration.rs"]
mod migration;
#[path = "../../examples/own_update.rs"]
mod own_update;
#[path = "../../examples/querying.rs"]
mod querying;
#[path = "../../examples/rabbitmq.rs"]
mod rabbitmq;
#[path = "../../examples/router.rs"]
mod router;
#[path = "../../examples/scheduled.rs"]
mod scheduled;
#[path = "../../examples/tenants.rs"]
mod tenants;
#[cfg(feature = "testing")]
#[path = "../../examples/testing.rs"]
mod testing;
#[path = "../../examples/transaction.rs"]
mod transaction;
#[path = "../../examples/webhook.rs"]
mod webhook;
#[path = "../../examples/workflow_events/main.rs"]
mod workflow_events;

/// Runs an example in a thread with its own tokio runtime, so that an example that hangs fails with a message.
fn run(main: fn() -> Result<(), Box<dyn Error>>, databases: &'static [&'static str]) {
    let _left = Left(databases);
    let (ended, end) = channel();
    std::thread::spawn(move || ended.send(main().map_err(|error| error.to_string())));
    match end.recv_timeout(2 * LONG) {
        Ok(ended) => assert_eq!(ended, Ok(())),
        Err(RecvTimeoutError::Timeout) => panic!("the example did not end within {:?}", 2 * LONG),
        Err(RecvTimeoutError::Disconnected) => panic!("the example panicked"),
    }
}

/// The databases of examples. They are dropped at the end even if the test fails.
struct Left(&'static [&'static str]);

impl Drop for Left {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let remove = async {
            let client = Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await?;
            for database in self.0 {
                client.database(database).drop().await?;
            }
            Ok::<_, mongodb::error::Error>(())
        };
        let removed = runtime.block_on(async { timeout(LONG, remove).await });
        if !std::thread::panicking() {
            removed.expect("MongoDB answers").unwrap();
        }
    }
}

#[test]
fn an_update_of_your_own_carries_messages() {
    run(own_update::main, &["example_own_update"]);
}

#[test]
fn a_transaction_carries_messages() {
    run(transaction::main, &["example_transaction"]);
}

#[test]
fn an_inbox_makes_effects_exactly_once() {
    run(inbox::main, &["example_inbox"]);
}

#[test]
fn a_scheduled_message_is_stored() {
    run(scheduled::main, &["example_scheduled"]);
}

#[test]
fn a_time_out_is_cancelled_and_a_total_replaced() {
    run(change_of_mind::main, &["example_change"]);
}

#[test]
fn a_router_serves_handlers_and_rabbitmq() {
    run(router::main, &["example_router"]);
    remove_from_broker("example.router");
}

#[test]
fn rabbitmq_gets_messages_after_the_save() {
    run(rabbitmq::main, &["example_rabbitmq"]);
    remove_from_broker("example.rabbitmq");
}

#[test]
fn a_consumer_changes_an_aggregate() {
    run(consumer::main, &["example_consumer"]);
    for name in ["example.consumer", "example.consumer.dead", "example.consumer.delayed"] {
        remove_from_broker(name);
    }
}

/// Counts the lines between the comment `// The consumer.` and the next blank line, and one line for the stop.
#[test]
fn a_consumer_with_an_inbox_takes_eight_lines() {
    let example = include_str!("../../examples/consumer.rs");
    let (_, part) = example.split_once("// The consumer.").unwrap();
    let lines = part.lines().skip(1).take_while(|line| !line.is_empty()).count();
    assert!(example.contains("receiver.stop().await") && part.contains(".start();"));
    assert!((4..8).contains(&lines), "{lines} lines, and one for the stop");
}

#[test]
fn a_webhook_is_signed_and_verified() {
    run(webhook::main, &[]);
}

#[cfg(feature = "testing")]
#[test]
fn a_test_with_the_kit_needs_no_server() {
    run(testing::main, &[]);
}

#[test]
fn events_survive_broken_handlers_and_a_restart() {
    run(workflow_events::main, &["example_workflow"]);
}

#[test]
fn tenants_share_an_inline_dispatcher() {
    run(tenants::main, &["example_tenant_north", "example_tenant_south"]);
}

#[test]
fn a_migration_keeps_old_documents() {
    run(migration::main, &["example_migration"]);
}

#[test]
fn queries_of_the_driver_run_without_the_store() {
    run(querying::main, &["example_querying"]);
}

#[test]
fn rescuer_and_dispatcher_run_in_process() {
    run(in_process::main, &["example_in_process"]);
}

/// Removes the exchange and the queue with this name.
fn remove_from_broker(name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connection =
            lapin::Connection::connect(&uri("OUTBOX_RABBITMQ_URI"), Default::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
        channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
    });
}

/// The program that the next test starts, which is this test binary with only this test.
#[test]
#[ignore = "serves until it is terminated, as the next test has it"]
fn serve_until_terminated() {
    axum_service::main().unwrap();
}

#[tokio::test]
async fn a_web_service_answers_and_stops_when_asked() {
    let client = Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
    let database = client.database("example_axum");
    let orders = database.collection::<mongodb::bson::Document>("orders");
    let id = uuid::Uuid::now_v7().to_string();
    orders.insert_one(doc! { "_id": &id }).await.unwrap();

    let mut service = Program::new(std::env::current_exe().unwrap())
        .args(["examples::serve_until_terminated", "--exact", "--ignored", "--nocapture"])
        .env("LISTEN", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(service.stdout.take().unwrap()).lines();
    let address = address_in(&mut output).await;
    assert_eq!(ask(&address, "GET", "/ready").await, 200);
    assert_eq!(ask(&address, "POST", "/orders/none/pay").await, 404);
    assert_eq!(ask(&address, "POST", &format!("/orders/{id}/pay")).await, 204);

    let pid = service.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let ended = timeout(LONG, service.wait()).await.expect("it stops").unwrap();
    assert!(ended.success(), "{ended}");
    let stored = orders.find_one(doc! { "_id": &id }).await.unwrap().unwrap();
    assert!(stored.get_array("outbox").unwrap().is_empty(), "it delivered before it stopped: {stored}");
    database.drop().await.unwrap();
}

/// Returns the address that the program prints.
async fn address_in(output: &mut Lines<BufReader<ChildStdout>>) -> String {
    let listening = async {
        while let Some(line) = output.next_line().await.unwrap() {
            if let Some((_, address)) = line.split_once("listening on ") {
                return address.to_owned();
            }
        }
        panic!("it ended before it listened");
    };
    timeout(LONG, listening).await.expect("it listens")
}

/// Returns the status code of a response.
async fn ask(address: &str, method: &str, path: &str) -> u16 {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    };
    timeout(LONG, exchange).await.expect("it answers")
}

#[test]
fn each_example_is_short_and_runs_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let here = fs::read_to_string(folder.join("../tests/it/examples.rs")).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        // A folder has an example that needs more room.
        if path.is_file() {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!((20..=50).contains(&lines), "{name} has {lines} lines");
        }
        // Other files test these.
        if ["adventure_works", "quickstart"].contains(&name) {
            continue;
        }
        assert!(here.contains(&format!("{name}::main")), "{name} is not run here");
    }
}

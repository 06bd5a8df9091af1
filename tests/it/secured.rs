//! Tests both services as programs, on servers with TLS, passwords and the least privileges.
//!
//! The roles are exactly those of deploy/roles, so these tests fail if a service needs a privilege that the files
//! don't have.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::secured_servers::{ADMIN, PASSWORD, Secured, VERIFIED};
use crate::support::{LONG, Order};
use document_outbox::{
    CommandSender, DocumentRef, InlineDispatcher, Mode, Store,
    amqp::{AmqpSettings, Publication, Publisher, Topology, TopologyMode},
    command::{COMMANDS_EXCHANGE, COMMANDS_QUEUE, ProcessDocumentMessages, Reason},
    deliver::{Deliver, RabbitMq, RabbitMqSettings},
    store::Inserted,
    tls::TlsFiles,
};
use futures::StreamExt;
use lapin::{
    ExchangeKind,
    options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use mongodb::{
    Client,
    bson::{DateTime, Document, RawDocumentBuf, Uuid, doc},
};
use outbox_operate::{
    OperateError, Operator, OperatorSettings, Query,
    act::{Act, ActRequest, AuditRequest, Author},
};
use serde_json::json;
use tokio::sync::watch;

/// A running service, killed when this value is dropped.
struct Service {
    child: Child,
    log: watch::Receiver<Vec<String>>,
}

impl Service {
    /// Starts the service with settings only from the environment.
    fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new(binary(name))
            .env_clear()
            .env("OUTBOX_HTTP_LISTEN", "127.0.0.1:0")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = watch::channel(Vec::new());
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| sender.send_modify(|log| log.push(line)));
        });
        Self { child, log }
    }

    /// Waits for a line with all these parts.
    async fn says(&mut self, parts: &[&str]) {
        let said = |log: &Vec<String>| log.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        let heard = tokio::time::timeout(LONG, self.log.wait_for(said)).await;
        let heard = heard.is_ok_and(|heard| heard.is_ok());
        assert!(heard, "waited in vain for {parts:?} in {:#?}", self.log());
    }

    fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    /// Stops the service, waits until it has ended, and returns its exit code.
    async fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
        self.ended().await
    }

    async fn ended(&mut self) -> Option<i32> {
        // The output ends when the process ends.
        let end = tokio::time::timeout(LONG, self.log.wait_for(|_| false)).await;
        assert!(end.is_ok_and(|ended| ended.is_err()), "it continues: {:#?}", self.log());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let told = self.log().join("\n");
        assert!(std::thread::panicking() || !told.contains(PASSWORD), "a password in the log: {told}");
    }
}

/// Returns the path of the executable, which cargo puts next to this test.
fn binary(name: &str) -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(binary.exists(), "{} is not there: cargo build --workspace --bins", binary.display());
    binary
}

/// The settings of one service, with the user that has the service's name.
struct Settings(Vec<(&'static str, String)>);

impl Settings {
    fn of(secured: &Secured, name: &str, vhost: &str) -> Self {
        Self(vec![
            ("OUTBOX_MONGODB_URI", secured.mongodb_uri(name, "ca.pem")),
            ("OUTBOX_RABBITMQ_URI", secured.rabbitmq_uri(name, vhost)),
            ("OUTBOX_RABBITMQ_CA_FILE", secured.file("ca.pem")),
            ("OUTBOX_RABBITMQ_CERT_FILE", secured.file("client.pem")),
            ("OUTBOX_RABBITMQ_KEY_FILE", secured.file("client.pem")),
            ("OUTBOX_TOPOLOGY", if vhost == VERIFIED { "verify" } else { "declare" }.into()),
            ("OUTBOX_WATCH", "shop.*".into()),
        ])
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.0.retain(|(other, _)| *other != name);
        self.0.push((name, value.into()));
        self
    }

    fn start(&self, service: &str) -> Service {
        let settings: Vec<_> = self.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Service::start(service, &settings)
    }
}

fn rescuer(secured: &Secured, vhost: &str) -> Settings {
    Settings::of(secured, "outbox-rescuer", vhost)
        .with("OUTBOX_DELAY", "1s")
        .with("OUTBOX_SWEEP_INTERVAL", "500ms")
}

fn dispatcher(secured: &Secured, vhost: &str) -> Settings {
    Settings::of(secured, "outbox-dispatcher", vhost)
}

/// Receives every message of `outbox.messages` in a virtual host.
struct Receiver {
    _connection: lapin::Connection,
    consumer: lapin::Consumer,
}

impl Receiver {
    async fn begin(secured: &Secured, vhost: &str) -> Self {
        let connection = secured.amqp(vhost).await;
        let channel = connection.create_channel().await.unwrap();
        let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let queue = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default);
        let (name, messages) = ("received", "outbox.messages");
        channel.exchange_declare(messages.into(), ExchangeKind::Topic, exchange, none()).await.unwrap();
        channel.queue_declare(name.into(), queue, none()).await.unwrap();
        channel.queue_bind(name.into(), messages.into(), "#".into(), bind, none()).await.unwrap();
        let consumer = channel.basic_consume(name.into(), name.into(), consume, none()).await.unwrap();
        Self { _connection: connection, consumer }
    }

    /// Returns type and body of the next message.
    async fn next(&mut self) -> (String, serde_json::Value) {
        let next = tokio::time::timeout(LONG, self.consumer.next()).await;
        let delivery = next.expect("a message arrives").expect("the queue stays").unwrap();
        (delivery.routing_key.to_string(), serde_json::from_slice(&delivery.data).unwrap())
    }
}

/// Pushes the minimal entry that a writer in any language has to push.
async fn push(client: &Client, database: &str, id: &str, amount: i64) {
    let entry = doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": amount } };
    let orders = client.database(database).collection::<Document>("orders");
    let push = orders.update_one(doc! { "_id": id }, doc! { "$push": { "outbox": entry } });
    push.upsert(true).await.unwrap();
}

/// Creates an application that delivers inline and hands off failures, with its own user.
async fn deliver_inline(secured: &Secured, vhost: &str, receiver: &mut Receiver, amount: i64) {
    let uri = secured.rabbitmq_uri("shop", vhost);
    let pem = || Some(secured.file("client.pem").into());
    let files = TlsFiles { ca: Some(secured.file("ca.pem").into()), certificate: pem(), key: pem() };
    let amqp = AmqpSettings::new(&uri).unwrap().with_tls(files).unwrap();
    let topology = if vhost == VERIFIED { TopologyMode::Verify } else { TopologyMode::Declare };
    let rabbitmq = RabbitMq::start(RabbitMqSettings {
        amqp: amqp.clone(),
        topology,
        ..RabbitMqSettings::new(&uri).unwrap()
    });
    soon("a connection for messages", rabbitmq.available()).await;
    let shop = secured.client("shop").await;
    let inline = InlineDispatcher::builder(&shop).mode(Mode::Await).deliver_to(rabbitmq.clone());
    let orders = Store::<Order>::new(shop.database("shop").collection::<Order>("orders"), &inline);
    let mut order = Order::new(&format!("inline-{amount}"));
    order.add(amount);
    let inserted = orders.insert(order).await.unwrap();
    assert!(matches!(inserted, Inserted::Applied(..)), "{inserted:?}");
    assert_eq!(receiver.next().await, ("order.added".into(), json!({ "amount": amount })));

    let commands = CommandSender::topology(COMMANDS_EXCHANGE, COMMANDS_QUEUE, topology);
    let publisher = Publisher::start(amqp, commands);
    assert!(soon("a connection for commands", publisher.ready()).await);
    let namespace = mongodb::Namespace::new("shop", "orders");
    let command = ProcessDocumentMessages::new(DocumentRef::by_id(namespace, "o-1"), Reason::Handoff);
    let sent = CommandSender::new(publisher.clone(), COMMANDS_EXCHANGE).send(vec![command]).await;
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    publisher.close().await;
    rabbitmq.close().await;
}

/// Waits until `work` ends, and fails with a message if that takes too long.
async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

const MANY: usize = 200;

#[tokio::test]
async fn secured_services_with_least_privileges_deliver_foreign_pushes() {
    let secured = Secured::start().await;
    let shop = secured.client("shop").await;
    let orders: Store<Order> =
        Store::new(shop.database("shop").collection::<Order>("orders"), &InlineDispatcher::off(&shop));
    orders.ensure_indexes().await.unwrap();

    let mut receiver = Receiver::begin(&secured, "/").await;
    let mut rescuing = rescuer(&secured, "/").start("outbox-rescuer");
    let mut dispatching = dispatcher(&secured, "/").start("outbox-dispatcher");
    push(&shop, "shop", "o-1", 1).await;
    assert_eq!(receiver.next().await, ("order.added".into(), json!({ "amount": 1 })));
    // A document without room for a claim is delivered under a lease in the state database.
    let entry = doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 3 } };
    let mut large = doc! { "_id": "o-large", "outbox": [entry], "fill": "" };
    let bytes = RawDocumentBuf::try_from(&large).unwrap().as_bytes().len();
    large.insert("fill", "x".repeat((16 << 20) - 20 - bytes));
    shop.database("shop").collection("orders").insert_one(large).await.unwrap();
    assert_eq!(receiver.next().await, ("order.added".into(), json!({ "amount": 3 })));
    // Claims of several documents are sent in one command, which needs no further privilege.
    let entry = || doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 6 } };
    let many = (0..MANY).map(|n| doc! { "_id": format!("o-many-{n}"), "outbox": [entry()] });
    shop.database("shop").collection("orders").insert_many(many).await.unwrap();
    for _ in 0..MANY {
        assert_eq!(receiver.next().await, ("order.added".into(), json!({ "amount": 6 })));
    }
    let log = dispatching.log();
    assert!(!log.iter().any(|line| line.contains("one by one")), "{log:#?}");
    deliver_inline(&secured, "/", &mut receiver, 4).await;
    for service in [rescuing, dispatching] {
        assert_eq!(service.stop().await, Some(0));
    }

    // The topology is declared beforehand, the services have no permission to declare, and the stream covers several
    // databases.
    secured.grant("outbox-rescuer", &["outboxRescuerOfSeveralDatabases"]).await;
    let mut receiver = Receiver::begin(&secured, VERIFIED).await;
    rescuing = rescuer(&secured, VERIFIED).with("OUTBOX_WATCH", "shop.*,stock.*").start("outbox-rescuer");
    dispatching =
        dispatcher(&secured, VERIFIED).with("OUTBOX_WATCH", "shop.*,stock.*").start("outbox-dispatcher");
    push(&shop, "shop", "o-1", 2).await;
    assert_eq!(receiver.next().await, ("order.added".into(), json!({ "amount": 2 })));
    deliver_inline(&secured, VERIFIED, &mut receiver, 5).await;
    for service in [rescuing, dispatching] {
        assert_eq!(service.stop().await, Some(0));
    }
}

/// The user of each service can do nothing beyond the service's own work, which the test above covers.
#[tokio::test]
async fn the_roles_permit_nothing_beyond_their_work() {
    let secured = Secured::start().await;
    let admin = secured.client(ADMIN).await;
    for database in ["shop", "other"] {
        let orders = admin.database(database).collection::<Document>("orders");
        orders.insert_one(doc! { "_id": "o-1", "outbox": [] }).await.unwrap();
    }
    let (rescuer, dispatcher) = ("outbox-rescuer", "outbox-dispatcher");
    let one = || doc! { "_id": "o-1" };
    let update = || doc! { "q": one(), "u": { "$set": { "x": 1 } } };
    let forbidden = [
        (rescuer, "shop", doc! { "update": "orders", "updates": [update()] }),
        (rescuer, "shop", doc! { "insert": "orders", "documents": [{ "_id": "o-2" }] }),
        (rescuer, "shop", doc! { "delete": "orders", "deletes": [{ "q": one(), "limit": 1 }] }),
        (rescuer, "other", doc! { "find": "orders" }),
        (rescuer, "admin", doc! { "find": "system.users" }),
        (dispatcher, "shop", doc! { "insert": "orders", "documents": [{ "_id": "o-2" }] }),
        (dispatcher, "shop", doc! { "delete": "orders", "deletes": [{ "q": one(), "limit": 1 }] }),
        (dispatcher, "shop", doc! { "drop": "orders" }),
        (dispatcher, "other", doc! { "find": "orders" }),
        (dispatcher, "other", doc! { "update": "orders", "updates": [update()] }),
        (dispatcher, "local", doc! { "find": "oplog.rs" }),
        (dispatcher, "admin", doc! { "createUser": "x", "pwd": "x", "roles": [] }),
    ];
    for (user, database, command) in forbidden {
        let client = secured.client(user).await;
        let name = format!("{user} in {database}: {command}");
        let error = client.database(database).run_command(command).await.expect_err(&name);
        assert!(error.to_string().contains("not authorized"), "{name}: {error}");
    }

    // The rescuer sends commands but no messages, and the dispatcher sends messages but no commands.
    for (user, exchange) in [(rescuer, "outbox.messages"), (dispatcher, COMMANDS_EXCHANGE)] {
        let published = publish_as(&secured, user, exchange).await;
        assert!(published.contains("ACCESS_REFUSED"), "{user} on {exchange}: {published}");
    }
}

/// An operator of the shop, logged in as this user.
async fn operator(secured: &Secured, user: &str) -> Operator {
    Operator::new(secured.client(user).await, OperatorSettings::new(vec!["shop.*".parse().unwrap()]))
}

/// A viewer reads everything and writes nothing. An operator changes entries, and only adds to the audit trail and to
/// the archive.
#[tokio::test]
async fn the_operators_roles_permit_their_commands() {
    let secured = Secured::start().await;
    let orders = secured.client(ADMIN).await.database("shop").collection::<Document>("orders");
    orders.create_indexes(document_outbox::store::indexes()).await.unwrap();
    let dead = |id: Uuid| doc! { "id": id, "type": "a", "payload": {}, "dead_at": DateTime::now(), "dead_reason": "permanent" };
    let (one, two) = (Uuid::new(), Uuid::new());
    orders.insert_one(doc! { "_id": "o-1", "outbox": [dead(one), dead(two)] }).await.unwrap();
    let author =
        || Author { name: "alice".into(), host: "here".into(), tool: "test".into(), reason: "x".into() };
    let of = |act: Act, id: Uuid| ActRequest::new(act, format!("id:{id}").parse().unwrap());

    let viewer = operator(&secured, "viewer").await;
    assert_eq!(viewer.status().await.unwrap().counts[0].messages, 2);
    viewer.groups(&Query::default()).await.unwrap();
    let findings = viewer.doctor().await.unwrap();
    assert!(!findings.iter().any(|finding| finding.runbook == Some("Privileges")), "{findings:#?}");
    let refused = viewer.execute(&of(Act::Replay, one), author(), |_| {}).await.unwrap_err();
    assert!(matches!(refused, OperateError::Refused { .. }), "{refused}");

    let acting = operator(&secured, "operator").await;
    for (act, id) in [(Act::Replay, one), (Act::Kill, one), (Act::Discard, two)] {
        let sum = acting.execute(&of(act, id), author(), |_| {}).await.unwrap();
        assert_eq!((sum.done, sum.failed), (1, 0), "{act}");
    }
    assert_eq!(acting.restore(&[two], author(), |_| {}).await.unwrap().done, 1);
    let records = acting.audit(&AuditRequest { limit: 10, ..AuditRequest::default() }).await.unwrap();
    assert_eq!(records.len(), 4);
    assert_eq!(records[0].mongodb_user.as_deref(), Some("operator@admin"));

    let (all, change) = (doc! { "q": {}, "limit": 0 }, doc! { "q": {}, "u": { "$set": { "x": 1 } } });
    let insert = || doc! { "insert": "audit", "documents": [{ "_id": 1 }] };
    for (user, database, command) in [
        ("operator", "document_outbox", doc! { "update": "audit", "updates": [&change] }),
        ("operator", "document_outbox", doc! { "delete": "audit", "deletes": [&all] }),
        ("operator", "document_outbox", doc! { "update": "archive", "updates": [&change] }),
        ("operator", "document_outbox", doc! { "delete": "archive", "deletes": [&all] }),
        ("operator", "document_outbox", doc! { "update": "leases", "updates": [&change] }),
        ("operator", "document_outbox", doc! { "drop": "audit" }),
        ("operator", "shop", doc! { "delete": "orders", "deletes": [&all] }),
        ("operator", "shop", doc! { "insert": "orders", "documents": [{ "_id": 1 }] }),
        ("viewer", "shop", doc! { "update": "orders", "updates": [&change] }),
        ("viewer", "document_outbox", insert()),
        ("shop", "document_outbox", doc! { "find": "audit" }),
        ("shop", "document_outbox", doc! { "find": "archive" }),
        ("shop", "document_outbox", insert()),
        ("outbox-dispatcher", "document_outbox", doc! { "find": "archive" }),
        ("outbox-dispatcher", "document_outbox", insert()),
        ("outbox-rescuer", "document_outbox", doc! { "find": "audit" }),
        ("outbox-rescuer", "document_outbox", insert()),
    ] {
        let name = format!("{user}: {command}");
        let answer = secured.client(user).await.database(database).run_command(command).await;
        let error = answer.expect_err(&name);
        assert!(error.to_string().contains("not authorized"), "{name}: {error}");
    }
}

/// Publishes a message as this user, and returns the broker's answer.
async fn publish_as(secured: &Secured, user: &str, exchange: &str) -> String {
    let pem = || Some(secured.file("client.pem").into());
    let files = TlsFiles { ca: Some(secured.file("ca.pem").into()), certificate: pem(), key: pem() };
    let uri = secured.rabbitmq_uri(user, VERIFIED);
    let amqp = AmqpSettings::new(&uri).unwrap().with_tls(files).unwrap();
    let publisher = Publisher::start(amqp, Topology::default());
    assert!(soon("a connection", publisher.ready()).await);

    let message =
        Publication { exchange: exchange.into(), routing_key: "x".into(), ..Publication::default() };
    let published = soon("an answer", publisher.publish(vec![message])).await;
    publisher.close().await;
    format!("{published:?}")
}

#[tokio::test]
async fn missing_or_foreign_certificates_are_refused_with_a_reason() {
    let secured = Secured::start().await;

    // The CA file first has the wrong authority for RabbitMQ, then the right one. No restart is needed.
    let file = secured.file("chosen-ca.pem");
    std::fs::copy(secured.file("other-ca.pem"), &file).unwrap();
    let mut service =
        dispatcher(&secured, "/").with("OUTBOX_RABBITMQ_CA_FILE", &file).start("outbox-dispatcher");
    service
        .says(&[
            "RabbitMQ needs attention",
            "the certificate of localhost:",
            "rabbitmq_ca_file",
            "UnknownIssuer",
        ])
        .await;
    std::fs::copy(secured.file("ca.pem"), &file).unwrap();
    service.says(&["connected to RabbitMQ"]).await;

    let mut service = dispatcher(&secured, "/")
        .with("OUTBOX_RABBITMQ_CERT_FILE", "")
        .with("OUTBOX_RABBITMQ_KEY_FILE", "")
        .start("outbox-dispatcher");
    service
        .says(&["RabbitMQ needs attention", "refused the encrypted connection", "rabbitmq_cert_file"])
        .await;

    let uri = secured.mongodb_uri("outbox-rescuer", "other-ca.pem");
    let mut service = rescuer(&secured, "/").with("OUTBOX_MONGODB_URI", uri).start("outbox-rescuer");
    service.says(&["could not ask MongoDB for its version and kind", "UnknownIssuer", "tlsCAFile"]).await;
}

#[tokio::test]
async fn a_missing_privilege_is_named_with_its_grant() {
    let secured = Secured::start().await;
    let admin = secured.client(ADMIN).await;

    secured.grant("outbox-rescuer", &["outboxDispatcher"]).await;
    let mut service = rescuer(&secured, "/").start("outbox-rescuer");
    service.says(&["trying again", "grant it find, listIndexes and changeStream"]).await;

    // The service needs no restart.
    secured.grant("outbox-rescuer", &["outboxRescuer"]).await;
    service.says(&["the change stream is open"]).await;
    drop(service);

    secured.grant("outbox-dispatcher", &["outboxRescuer"]).await;
    let _rescuing = rescuer(&secured, "/").start("outbox-rescuer");
    let mut service = dispatcher(&secured, "/").start("outbox-dispatcher");
    push(&admin, "shop", "o-1", 1).await;
    service.says(&["cannot process a command", "requeued", "grant it find and update"]).await;

    let mut service =
        dispatcher(&secured, "/").with("OUTBOX_COMMANDS_QUEUE", "other").start("outbox-dispatcher");
    service
        .says(&["RabbitMQ needs attention", "queue \"other\"", "grant the user configure, write and read"])
        .await;
}

#[tokio::test]
async fn a_wrong_password_is_reported_but_hidden() {
    let secured = Secured::start().await;
    let uri = secured.mongodb_uri("outbox-rescuer", "ca.pem").replace(PASSWORD, "not-hunter2");
    let mut service = rescuer(&secured, "/").with("OUTBOX_MONGODB_URI", uri).start("outbox-rescuer");
    service.says(&["outbox-rescuer failed", "correct the credentials"]).await;
    assert!(!service.log().concat().contains("not-hunter2"));

    let uri = secured.rabbitmq_uri("outbox-rescuer", "/").replace(PASSWORD, "not-hunter2");
    let mut service = rescuer(&secured, "/").with("OUTBOX_RABBITMQ_URI", uri).start("outbox-rescuer");
    service
        .says(&[
            "RabbitMQ needs attention",
            "refused user \"outbox-rescuer\"",
            "check the user, its password",
        ])
        .await;
    assert!(!service.log().concat().contains("not-hunter2"));
}

#[tokio::test]
async fn unusable_or_readable_secret_files_are_refused_first() {
    // There are no servers with these names, so a service that connected would retry forever.
    let mongodb = "mongodb://u:hunter2-of-the-tests@mongodb.invalid/?replicaSet=rs0";
    let rabbitmq = "amqp://u:hunter2-of-the-tests@rabbitmq.invalid/%2f";
    for name in ["outbox-rescuer", "outbox-dispatcher"] {
        let insecure = format!("{mongodb}&tlsInsecure=true");
        let open = [
            ("OUTBOX_MONGODB_URI", insecure.as_str()),
            ("OUTBOX_RABBITMQ_URI", rabbitmq),
            ("OUTBOX_WATCH", "shop.*"),
        ];
        let mut service = Service::start(name, &open);
        service.says(&["OUTBOX_RABBITMQ_URI: begins with amqp://", "allow_insecure = true"]).await;
        service.says(&["OUTBOX_MONGODB_URI: has tlsInsecure", "allow_insecure = true"]).await;
        assert_eq!(service.ended().await, Some(2));

        let allowed = [("OUTBOX_ALLOW_INSECURE", "true")];
        let mut service = Service::start(name, &[&open[..], &allowed].concat());
        service.says(&[&format!("{name} started"), "allow_insecure=true"]).await;

        let (encrypted, no_ca) =
            (rabbitmq.replace("amqp:", "amqps:"), format!("{mongodb}&tlsCAFile=/nowhere/m.pem"));
        let mut service = Service::start(
            name,
            &[
                ("OUTBOX_MONGODB_URI", &no_ca),
                ("OUTBOX_RABBITMQ_URI", &encrypted),
                ("OUTBOX_RABBITMQ_CA_FILE", "/nowhere/r.pem"),
                ("OUTBOX_WATCH", "shop.*"),
            ],
        );
        service
            .says(&["OUTBOX_MONGODB_URI: names an unusable file for TLS: /nowhere/m.pem cannot be read"])
            .await;
        service
            .says(&["OUTBOX_RABBITMQ_CA_FILE: /nowhere/r.pem cannot be read", "put the certificate"])
            .await;
        assert_eq!(service.ended().await, Some(2));

        // For MongoDB a connection without TLS is only a warning, because SCRAM does not reveal the password.
        let plain = [
            ("OUTBOX_MONGODB_URI", mongodb),
            ("OUTBOX_RABBITMQ_URI", encrypted.as_str()),
            ("OUTBOX_WATCH", "shop.*"),
        ];
        let mut service = Service::start(name, &plain);
        service.says(&["WARN", "mongodb_uri names another machine without TLS"]).await;
    }
}

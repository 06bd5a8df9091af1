//! Runs a service as in production, on real servers that require passwords, and collects all its output.
//! Included by the tests of both services.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicPublishOptions, ExchangeDeleteOptions, QueueDeleteOptions},
};
use mongodb::{
    Client,
    bson::{Bson, Document, Uuid, doc, spec::BinarySubtype},
};

/// The time limit of every wait. A test that reaches the limit fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: eval \"$(scripts/services env)\" first"))
}

/// A user of MongoDB and RabbitMQ, with its own names for databases and exchanges.
pub(crate) struct World {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) outside: lapin::Channel,
    _connection: lapin::Connection,
    /// The password in the URIs of MongoDB and RabbitMQ.
    pub(crate) password: String,
    /// The secret in every payload.
    pub(crate) payload: String,
}

impl World {
    pub(crate) async fn begin() -> Self {
        let unique = || Uuid::new().to_string().replace('-', "");
        let client = Client::with_uri_str(variable("OUTBOX_MONGODB_URI")).await.unwrap();
        let connection =
            lapin::Connection::connect(&variable("OUTBOX_RABBITMQ_URI"), Default::default()).await.unwrap();
        let world = Self {
            name: format!("secrets_{}", unique()),
            outside: connection.create_channel().await.unwrap(),
            _connection: connection,
            client,
            password: format!("password{}", unique()),
            payload: format!("payload{}", unique()),
        };
        let roles =
            ["readWriteAnyDatabase", "clusterMonitor"].map(|role| doc! { "role": role, "db": "admin" });
        let user = doc! { "createUser": &world.name, "pwd": world.real_password(), "roles": roles.to_vec() };
        world.client.database("admin").run_command(user).await.unwrap();
        rabbitmqctl(&["add_user", &world.name, &world.real_password()]);
        rabbitmqctl(&["set_permissions", "-p", "/", &world.name, ".*", ".*", ".*"]);
        world
    }

    /// Creates a password that must be percent-encoded in a URI.
    fn real_password(&self) -> String {
        format!("@{}", self.password)
    }

    /// Returns the settings with which a service logs in as this user. `wrong` is the server that gets a wrong
    /// password.
    pub(crate) fn settings(&self, wrong: Option<&str>) -> Vec<(String, String)> {
        let uri = |variable_name: &str| {
            let uri = variable(variable_name);
            let (scheme, rest) = uri.split_once("://").unwrap();
            let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
            let slip = if wrong == Some(variable_name) { "wrong" } else { "" };
            let login = format!("{scheme}://{}:%40{}{slip}@{rest}", self.name, self.password);
            match scheme {
                "mongodb" => format!("{login}&authSource=admin"),
                _ => login,
            }
        };
        let name = |suffix: &str| format!("{}{suffix}", self.name);
        [
            ("MONGODB_URI", uri("OUTBOX_MONGODB_URI")),
            ("RABBITMQ_URI", uri("OUTBOX_RABBITMQ_URI")),
            ("WATCH", name(".*")),
            ("STATE_DATABASE", name("_state")),
            ("COMMANDS_EXCHANGE", name("")),
            ("COMMANDS_QUEUE", name("")),
            ("HTTP_LISTEN", "127.0.0.1:0".into()),
            ("LOG_FORMAT", "json".into()),
            ("LOG_FILTER", "trace".into()),
        ]
        .map(|(key, value)| (format!("OUTBOX_{key}"), value))
        .to_vec()
    }

    /// Stores a document whose outbox has one message of this type and one malformed element.
    pub(crate) async fn store(&self, id: &str, message_type: &str) {
        let uuid =
            mongodb::bson::Binary { subtype: BinarySubtype::Uuid, bytes: Uuid::new().bytes().to_vec() };
        let message =
            doc! { "id": Bson::Binary(uuid), "type": message_type, "payload": { "card": &self.payload } };
        let unreadable = doc! { "id": "none", "type": 7, "payload": &self.payload };
        let document = doc! { "_id": id, "outbox": [message, unreadable] };
        let orders = self.client.database(&self.name).collection::<Document>("orders");
        orders.insert_one(document).await.unwrap();
    }

    /// Sends a command for this document.
    pub(crate) async fn command(&self, id: &str) {
        let (database, key) = (&self.name, format!(r#"{{"_id":"{id}"}}"#));
        let command = format!(
            r#"{{"database":"{database}","collection":"orders","document_key":{key},"reason":"sweep"}}"#
        );
        self.publish(command.as_bytes()).await;
    }

    /// Publishes this body to the exchange for commands.
    pub(crate) async fn publish(&self, body: &[u8]) {
        let properties = BasicProperties::default()
            .with_type("ProcessDocumentMessages".into())
            .with_content_type("application/json".into());
        let (exchange, key) = (self.name.clone(), "process-document-messages");
        let options = BasicPublishOptions::default();
        self.outside.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
    }

    /// Waits for a command in the queue.
    pub(crate) async fn command_arrives(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self
            .outside
            .basic_get(self.name.clone().into(), BasicGetOptions::default())
            .await
            .unwrap()
            .is_none()
        {
            assert!(Instant::now() < deadline, "no command came");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn end(self) {
        self.outside.queue_delete(self.name.clone().into(), QueueDeleteOptions::default()).await.unwrap();
        self.outside
            .exchange_delete(self.name.clone().into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
        for database in [self.name.clone(), format!("{}_state", self.name)] {
            self.client.database(&database).drop().await.unwrap();
        }
        self.client.database("admin").run_command(doc! { "dropUser": &self.name }).await.unwrap();
        rabbitmqctl(&["delete_user", &self.name]);
    }

    /// Checks that a text contains neither the password nor a payload, in any encoding.
    pub(crate) fn assert_shows_no_secret(&self, said: &str) {
        for secret in [&self.password, &self.payload] {
            let bytes = format!("{:?}", secret.as_bytes());
            for written in [secret.as_str(), bytes.trim_matches(['[', ']'])] {
                if let Some(at) = said.find(written) {
                    let start = said[..at].rfind('\n').map_or(0, |newline| newline + 1);
                    panic!("a secret in: {}", said[start..].lines().next().unwrap_or_default());
                }
            }
        }
    }
}

fn rabbitmqctl(arguments: &[&str]) {
    // This directory belongs to the checkout whose servers the tests use. The script for the servers is in the same
    // checkout.
    let script = Path::new(&variable("OUTBOX_TEST_SERVICES_DIR")).join("../scripts/services");
    let output = Command::new(&script).args(["rabbitmqctl", "-q"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the output of a program that ends by itself.
pub(crate) fn said_by(binary: &str, args: &[&str], settings: &[(String, String)]) -> String {
    let output = Command::new(binary).args(args).envs(settings.iter().cloned()).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A running service.
pub(crate) struct Service {
    child: Child,
    lines: Receiver<String>,
    /// All output of the service, including HTTP responses.
    pub(crate) said: String,
    address: String,
}

impl Service {
    pub(crate) fn start(binary: &str, settings: &[(String, String)]) -> Self {
        let mut command = Command::new(binary);
        command.envs(settings.iter().cloned()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        forward(child.stdout.take().unwrap(), sender.clone());
        forward(child.stderr.take().unwrap(), sender);
        let mut service = Self { child, lines, said: String::new(), address: String::new() };
        let line = service.line_with("probes, metrics and status are served");
        service.address =
            line.split(r#""address":""#).nth(1).and_then(|rest| rest.split('"').next()).unwrap().into();
        service
    }

    pub(crate) fn line_with(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no line with {part:?} in {}", self.said);
            };
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Returns the HTTP response, including its head.
    pub(crate) fn get(&mut self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        self.said.push_str(&answer);
        answer
    }

    pub(crate) async fn ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.get("/readyz").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < deadline, "not ready: {}", self.said);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the service cleanly and returns all its output.
    pub(crate) fn stop(mut self) -> String {
        let (status, metrics) = (self.get("/status"), self.get("/metrics"));
        assert!(status.contains(r#""ready""#) && metrics.contains("outbox_build_info"), "{status}{metrics}");
        let (code, said) = self.end();
        assert_eq!(code, Some(0), "{said}");
        said
    }

    /// Stops the service unless it has ended by itself. Returns its exit code and all its output.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        let code = self.child.wait().unwrap().code();
        self.lines.iter().for_each(|line| self.said.push_str(&(line + "\n")));
        (code, std::mem::take(&mut self.said))
    }
}

/// Kills the service, so that no service outlives its test even if the test fails.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(output: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

//! Runs a MongoDB and a RabbitMQ with the users and roles of deploy/roles. Both servers accept only TLS, and require a
//! password and a certificate from every user.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mongodb::{
    Client,
    bson::{Document, doc},
    options::ClientOptions,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde_json::{Value, json};

use crate::support::LONG;

/// The password of every user; it must not appear in any log.
pub const PASSWORD: &str = "hunter2-of-the-tests";
/// The user with all permissions on MongoDB and RabbitMQ.
pub const ADMIN: &str = "admin";
/// The virtual host with the permissions and the topology of rabbitmq-verify.json; `/` has those of rabbitmq-declare.json.
pub const VERIFIED: &str = "verified";

/// Both servers and the certificates, which are removed when this value is dropped or the process ends.
pub struct Secured {
    directory: PathBuf,
    guard: Child,
    mongodb: u16,
    rabbitmq: u16,
}

impl Secured {
    /// Starts both servers, and returns when their users can log in.
    pub async fn start() -> Self {
        crate::isolation::assert_in("secured");
        let name = format!("secured-{}", uuid::Uuid::now_v7().simple());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(directory.join("mongodb")).unwrap();
        make_certificates(&directory);
        let [mongodb, rabbitmq, epmd, distribution] = free_ports();
        write_mongodb_files(&directory);
        write_rabbitmq_files(&directory, rabbitmq);
        let guard = Command::new("sh")
            .args(["-c", RUN_BOTH])
            .arg(&directory)
            .env("MONGOD", mongod())
            .env("MONGODB_PORT", mongodb.to_string())
            .env("RABBITMQ", rabbitmq_server())
            .env("HOME", &directory)
            .env("LC_ALL", "C.UTF-8")
            .env("ERL_EPMD_PORT", epmd.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("secured-{rabbitmq}@localhost"))
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .envs(rabbitmq_paths(&directory))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            // With this variable, the server's process replaces the script that starts it.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A signal that ends the test's process group must not end the script before the cleanup.
            .process_group(0)
            .spawn()
            .unwrap();
        let secured = Self { directory, guard, mongodb, rabbitmq };
        secured.make_users().await;
        secured
    }

    /// Returns the path of a file with certificates: `ca.pem`, `other-ca.pem`, or `client.pem` (certificate and key).
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// Returns a user's URI that trusts this authority and presents the client certificate.
    pub fn mongodb_uri(&self, user: &str, ca: &str) -> String {
        format!(
            "mongodb://{user}:{PASSWORD}@localhost:{}/?replicaSet=secured&authSource=admin&tls=true&tlsCAFile={}\
             &tlsCertificateKeyFile={}",
            self.mongodb,
            self.file(ca),
            self.file("client.pem"),
        )
    }

    pub fn rabbitmq_uri(&self, user: &str, vhost: &str) -> String {
        format!("amqps://{user}:{PASSWORD}@localhost:{}/{}", self.rabbitmq, vhost.replace('/', "%2f"))
    }

    /// Connects as this user.
    pub async fn client(&self, user: &str) -> Client {
        Client::with_uri_str(self.mongodb_uri(user, "ca.pem")).await.unwrap()
    }

    /// A connection that is independent of the library, as the administrator.
    pub async fn amqp(&self, vhost: &str) -> lapin::Connection {
        let pem = fs::read(self.file("client.pem")).unwrap();
        let tls = lapin::tcp::OwnedTLSConfig {
            identity: Some(lapin::tcp::OwnedIdentity::PKCS8 { pem: pem.clone(), key: pem }),
            cert_chain: Some(fs::read_to_string(self.file("ca.pem")).unwrap()),
        };
        let runtime = lapin::runtime::default_runtime().unwrap();
        let (uri, options) = (self.rabbitmq_uri(ADMIN, vhost), lapin::ConnectionProperties::default());
        lapin::Connection::connect_with_config(&uri, options, tls, runtime).await.unwrap()
    }

    /// Creates a user of MongoDB with these roles, or replaces the user's roles by these.
    pub async fn grant(&self, user: &str, roles: &[&str]) {
        let admin = self.client(ADMIN).await.database("admin");
        let users = admin.run_command(doc! { "usersInfo": user }).await.unwrap();
        let verb = if users.get_array("users").unwrap().is_empty() { "createUser" } else { "updateUser" };
        let command = doc! { verb: user, "pwd": PASSWORD, "roles": roles };
        admin.run_command(command).await.unwrap();
    }

    async fn make_users(&self) {
        let mut options = ClientOptions::parse(self.mongodb_uri("nobody", "ca.pem")).await.unwrap();
        (options.credential, options.direct_connection, options.repl_set_name) = (None, Some(true), None);
        let nobody = Client::with_options(options).unwrap().database("admin");
        let host = format!("localhost:{}", self.mongodb);
        let set = doc! { "_id": "secured", "members": [{ "_id": 0, "host": host }] };
        until_it_works("the set to be made", || nobody.run_command(doc! { "replSetInitiate": set.clone() }))
            .await;
        let admin = doc! { "createUser": ADMIN, "pwd": PASSWORD, "roles": ["root"] };
        until_it_works("the first user to be made", || nobody.run_command(admin.clone())).await;
        let admin = self.client(ADMIN).await.database("admin");
        let roles: Vec<Document> = serde_json::from_str(&role_file("mongodb.json")).unwrap();
        for role in roles {
            admin.run_command(role).await.unwrap();
        }
        for (user, role) in [
            ("outbox-rescuer", "outboxRescuer"),
            ("outbox-dispatcher", "outboxDispatcher"),
            ("shop", "outboxApplication"),
            ("viewer", "outboxViewer"),
            ("operator", "outboxOperator"),
        ] {
            self.grant(user, &[role]).await;
        }
        until_it_works("RabbitMQ to answer", || async {
            let address = ("localhost", self.rabbitmq);
            tokio::net::TcpStream::connect(address).await
        })
        .await;
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        self.guard.wait().unwrap();
    }
}

/// The script runs the servers until its input ends, which happens when this process ends for any reason, and
/// then removes everything.
const RUN_BOTH: &str = r#"
cd "$0"
epmd >epmd.log 2>&1 & epmd=$!
"$RABBITMQ" >rabbitmq.log 2>&1 & rabbitmq=$!
"$MONGOD" --config mongod.conf --port "$MONGODB_PORT" >mongod.log 2>&1 & mongod=$!
cat
[ -z "${OUTBOX_TEST_KEEP:-}" ] || cp -r . "$OUTBOX_TEST_KEEP"
kill -KILL $rabbitmq $mongod $epmd
wait
cd /
rm -rf "$0"
"#;

async fn until_it_works<T, E, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: IntoFuture<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let mut last = String::new();
    let works = async {
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let done = tokio::time::timeout(LONG, works).await.ok();
    done.unwrap_or_else(|| panic!("waited in vain for {what}: {last}"))
}

/// Returns free ports. The ports are below the range for outgoing connections, so that no connection takes a port
/// before its server does.
fn free_ports<const N: usize>() -> [u16; N] {
    let mut taken = Vec::new();
    [(); N].map(|()| {
        let ports = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
        let bound = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).next().unwrap();
        let port = bound.local_addr().unwrap().port();
        taken.push(bound);
        port
    })
}

/// Returns the `mongod` on PATH, or otherwise the one that scripts/services has unpacked.
fn mongod() -> PathBuf {
    let unpacked = std::env::var_os("OUTBOX_TEST_SERVICES_DIR").map(|dir| Path::new(&dir).join("bin/mongod"));
    let found = unpacked.filter(|path| path.exists()).or_else(|| on_path("mongod"));
    found.expect("a mongod: scripts/services up --replicas 3 gets one")
}

/// Returns the command that scripts/services uses too. Debian's command on PATH would switch to another user and to
/// /var.
fn rabbitmq_server() -> PathBuf {
    let debian = PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server");
    let found = Some(debian).filter(|path| path.exists()).or_else(|| on_path("rabbitmq-server"));
    found.expect("a RabbitMQ: install the package rabbitmq-server")
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.exists())
}

pub fn role_file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/roles").join(name)).unwrap()
}

fn write_mongodb_files(directory: &Path) {
    fs::write(directory.join("keyfile"), "a2V5IG9mIHRoZSB0ZXN0cw==").unwrap();
    fs::set_permissions(directory.join("keyfile"), fs::Permissions::from_mode(0o600)).unwrap();
    let conf = "
net: { bindIp: localhost, unixDomainSocket: { enabled: false },
       tls: { mode: requireTLS, certificateKeyFile: server.pem, CAFile: ca.pem } }
security: { keyFile: keyfile }
replication: { replSetName: secured, oplogSizeMB: 64 }
storage: { dbPath: mongodb, wiredTiger: { engineConfig: { cacheSizeGB: 0.25 } } }
setParameter: { diagnosticDataCollectionEnabled: false }
";
    fs::write(directory.join("mongod.conf"), conf).unwrap();
}

fn rabbitmq_paths(directory: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    [
        ("RABBITMQ_CONF_ENV_FILE", "rabbitmq-env.conf"),
        ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", "advanced.config"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
        ("RABBITMQ_MNESIA_BASE", "mnesia"),
        ("RABBITMQ_LOG_BASE", "log"),
        ("RABBITMQ_LOGS", "rabbit.log"),
        ("RABBITMQ_SCHEMA_DIR", "schema"),
        ("RABBITMQ_GENERATED_CONFIG_DIR", "config"),
        ("RABBITMQ_PID_FILE", "rabbitmq.pid"),
    ]
    .into_iter()
    .map(|(variable, name)| (variable, directory.join(name)))
}

fn write_rabbitmq_files(directory: &Path, port: u16) {
    let at = |name: &str| directory.join(name).display().to_string();
    let conf = format!(
        "listeners.tcp = none
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {}
ssl_options.certfile = {}
ssl_options.keyfile = {}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
load_definitions = {}
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 100MB
log.console = false
",
        at("ca.pem"),
        at("server.pem"),
        at("server.pem"),
        at("definitions.json"),
    );
    fs::write(directory.join("rabbitmq.conf"), conf).unwrap();
    fs::write(directory.join("rabbitmq-env.conf"), "").unwrap();
    fs::write(directory.join("advanced.config"), "[].").unwrap();
    fs::write(directory.join("enabled_plugins"), "[].").unwrap();
    fs::write(directory.join("definitions.json"), definitions().to_string()).unwrap();
}

/// Returns RabbitMQ's definitions for the roles of deploy/roles with their users. The file for `verify` applies to a
/// separate virtual host.
fn definitions() -> Value {
    let user = |name: &str, tags: &str| json!({ "name": name, "password": PASSWORD, "tags": tags });
    let mut all = json!({
        "users": [user(ADMIN, "administrator"), user("outbox-rescuer", ""), user("outbox-dispatcher", ""), user("shop", "")],
        "vhosts": [{ "name": "/" }, { "name": VERIFIED }],
        "permissions": [],
    });
    let mut take = |part: &str, item: Value| {
        all.as_object_mut()
            .unwrap()
            .entry(part)
            .or_insert_with(|| json!([]))
            .as_array_mut()
            .unwrap()
            .push(item);
    };
    for vhost in ["/", VERIFIED] {
        take(
            "permissions",
            json!({ "user": ADMIN, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*" }),
        );
    }
    for (file, vhost) in [("rabbitmq-declare.json", "/"), ("rabbitmq-verify.json", VERIFIED)] {
        let parts: serde_json::Map<String, Value> = serde_json::from_str(&role_file(file)).unwrap();
        for (part, items) in parts {
            for mut item in items.as_array().unwrap().clone() {
                item["vhost"] = json!(vhost);
                take(&part, item);
            }
        }
    }
    all
}

/// Creates an authority with a certificate for the servers and one for their clients, and a second authority that
/// signed no certificate.
fn make_certificates(directory: &Path) {
    let authority = |name: &str| {
        let mut params = parameters(name, vec![]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let ca = authority("authority of the tests");
    fs::write(directory.join("ca.pem"), ca.pem()).unwrap();
    fs::write(directory.join("other-ca.pem"), authority("another authority").pem()).unwrap();
    for (name, hosts) in
        [("server", vec!["localhost".to_owned(), "127.0.0.1".to_owned()]), ("client", vec![])]
    {
        let mut params = parameters(name, hosts);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        let both = certificate.pem() + &key.serialize_pem();
        fs::write(directory.join(format!("{name}.pem")), both).unwrap();
    }
}

fn parameters(name: &str, hosts: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    // The end date is set, because the default, in the year 4096, is beyond the range of some parsers.
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2049, 1, 1));
    params
}

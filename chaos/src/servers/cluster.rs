//! A cluster of three RabbitMQ nodes, started from the distribution's package, with its own epmd (Erlang's port mapper).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use lapin::{Connection, ConnectionProperties};
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    process::Child,
    time::{sleep, timeout},
};

use super::erlang::Erlang;
use crate::{
    ports::free_port,
    process::{bound_to_us, kill_server},
};

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// How long a node may take to boot on a busy machine. The boot alone needs four seconds of processor time.
const BOOT: Duration = Duration::from_mins(4);
/// How long `heal` may take until enough nodes run again.
const RECOVERY: Duration = BOOT;
/// How long `heal` waits for all nodes before a majority of them is enough.
const FULL_RECOVERY: Duration = Duration::from_secs(10);
/// How long a killed node may take to end.
const GOODBYE: Duration = Duration::from_secs(3);
/// How long a node may take to accept a connection.
const DIAL: Duration = Duration::from_secs(1);
/// The threshold of a node's memory alarm while no fault raises the alarm, as a fraction of the machine's memory.
const WATERMARK: &str = "0.8";
/// The default `max_message_size` of RabbitMQ 3, in bytes.
const MESSAGE_LIMIT: u64 = 134_217_728;

/// A cluster that ends when this value is dropped or the process ends.
pub(crate) struct Cluster {
    folder: PathBuf,
    epmd_port: u16,
    nodes: Vec<Node>,
    erlang: Erlang,
    _epmd: Child,
}

struct Node {
    name: String,
    pub(crate) address: SocketAddr,
    distribution: u16,
    child: Mutex<Option<Child>>,
}

impl Cluster {
    /// Boots the cluster in this folder, and returns when all nodes are running as members of one cluster.
    pub(crate) async fn boot(folder: PathBuf) -> Result<Self> {
        if !Path::new(SERVER).exists() {
            bail!("the package rabbitmq-server is not installed");
        }
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        write_cookie(&folder)?;
        let ports = (0..7).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
        let nodes: Vec<_> = (0..3)
            .map(|place| Node {
                name: format!("chaos-{}-{}@localhost", ports[0], place + 1),
                address: SocketAddr::from(([127, 0, 0, 1], ports[1 + place])),
                distribution: ports[4 + place],
                child: Mutex::default(),
            })
            .collect();

        let mut epmd = bound_to_us(Path::new("/usr/bin/epmd"));
        epmd.env("ERL_EPMD_PORT", ports[0].to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
        let epmd = epmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        wait_until_listening(SocketAddr::from(([127, 0, 0, 1], ports[0])), None).await?;
        let erlang = Erlang::start(&folder, ports[0]).await?;
        let cluster = Self { folder, epmd_port: ports[0], nodes, erlang, _epmd: epmd };

        // The first node makes the cluster, and the others join it.
        cluster.start(0).await?;
        for joined in join_all([cluster.start(1), cluster.start(2)]).await {
            joined?;
        }
        let running = cluster.ask(0, "rabbit_nodes", "all_running", "").await?;
        if cluster.nodes.iter().any(|node| !running.contains(&node.name)) {
            bail!("not all nodes are in the cluster: {running}");
        }
        Ok(cluster)
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    pub(crate) fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Returns the URI of one node for this user.
    pub(crate) fn uri(address: SocketAddr, user: &str) -> String {
        format!("amqp://{user}:{user}@{address}/%2f?heartbeat={}", crate::settings::HEARTBEAT_SECONDS)
    }

    /// Connects the harness to the first node that accepts a connection.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        for node in &self.nodes {
            let uri = Self::uri(node.address, "guest");
            let dialed =
                timeout(Duration::from_secs(3), Connection::connect(&uri, ConnectionProperties::default()));
            if let Ok(Ok(connection)) = dialed.await {
                return Ok(connection);
            }
        }
        bail!("no RabbitMQ node takes a connection")
    }

    /// Starts a node, and waits until it accepts connections.
    pub(crate) async fn start(&self, place: usize) -> Result<()> {
        self.begin_start(place)?;
        let node = &self.nodes[place];
        wait_until_listening(node.address, Some(&node.child)).await
    }

    /// Starts a node, but does not wait until the node has booted.
    pub(crate) fn begin_start(&self, place: usize) -> Result<()> {
        let node = &self.nodes[place];
        let home = self.folder.join(format!("node-{}", place + 1));
        std::fs::create_dir_all(&home)?;
        std::fs::copy(self.folder.join(".erlang.cookie"), home.join(".erlang.cookie")).ok();
        write_configuration(&home, node.address, &self.nodes[0].name)?;

        let log = std::fs::File::options().create(true).append(true).open(home.join("out"))?;
        // Without these options, three idle nodes would take processor time from the other processes.
        let loopback =
            "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none";
        let path = |name: &str| home.join(name).into_os_string();
        let mut command = bound_to_us(Path::new(SERVER));
        command
            .env("HOME", &home)
            .env("LC_ALL", "C.UTF-8")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &node.name)
            .env("RABBITMQ_DIST_PORT", node.distribution.to_string())
            .env("RABBITMQ_CONF_ENV_FILE", path("rabbitmq-env.conf"))
            .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", path("mnesia"))
            .env("RABBITMQ_LOG_BASE", &home)
            .env("RABBITMQ_LOGS", path("log"))
            .env("RABBITMQ_SCHEMA_DIR", path("schema"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", path("config"))
            .env("RABBITMQ_PID_FILE", path("pid"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", loopback)
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        *node.child.lock() = Some(command.spawn()?);
        Ok(())
    }

    /// Whether this node accepts connections.
    pub(crate) async fn is_up(&self, place: usize) -> bool {
        matches!(timeout(DIAL, TcpStream::connect(self.nodes[place].address)).await, Ok(Ok(_)))
    }

    /// Sends SIGKILL to a node, and waits until it has ended. Returns false if the node was not running.
    pub(crate) async fn kill(&self, place: usize) -> bool {
        let Some(mut child) = self.nodes[place].child.lock().take() else { return false };
        let killed = child.id().and_then(|id| i32::try_from(id).ok()).is_some_and(kill_server);
        let _ = timeout(Duration::from_secs(5), child.wait()).await;
        killed
    }

    /// Returns the node that leads this queue.
    pub(crate) async fn leader(&self, queue: &str) -> Option<usize> {
        for node in 0..self.nodes.len() {
            let lookup = format!(
                "case rpc:call('{}', rabbit_amqqueue, lookup, [{{resource, <<\"/\">>, queue, <<\"{queue}\">>}}], 3000) of \
                 {{ok, Q}} -> rpc:call('{}', amqqueue, get_pid, [Q], 3000); Other -> Other end",
                self.nodes[node].name, self.nodes[node].name
            );
            if let Ok(leader) = self.erlang.evaluate(&lookup).await
                && let Some(place) = self.nodes.iter().position(|node| leader.contains(&node.name))
            {
                return Some(place);
            }
        }
        None
    }

    /// Calls a function on a node; the arguments are written in Erlang's syntax.
    pub(crate) async fn ask(
        &self,
        node: usize,
        module: &str,
        function: &str,
        arguments: &str,
    ) -> Result<String> {
        let name = &self.nodes[node].name;
        let call = format!("rpc:call('{name}', {module}, {function}, [{arguments}], 8000)");
        let answer = self.erlang.evaluate(&call).await?;
        if answer.starts_with("{badrpc") {
            bail!("{call}: {answer}");
        }
        Ok(answer)
    }

    /// Evaluates an Erlang expression in the hidden node, not in a node of the cluster.
    pub(crate) async fn evaluate(&self, expression: &str) -> Result<String> {
        self.erlang.evaluate(expression).await
    }

    /// Creates users with all permissions. The password of each user is the user's name.
    pub(crate) async fn add_users(&self, users: &[String]) -> Result<()> {
        for user in users {
            let quoted = format!("<<\"{user}\">>");
            // The user may exist from an earlier run, so an error is ignored.
            let _ = self
                .ask(
                    0,
                    "rabbit_auth_backend_internal",
                    "add_user",
                    &format!("{quoted}, {quoted}, <<\"chaos\">>"),
                )
                .await?;
            self.permit(user, ".*").await?;
        }
        Ok(())
    }

    /// Permits a user to write only to exchanges and queues whose names match the regular expression `write`.
    pub(crate) async fn permit(&self, user: &str, write: &str) -> Result<()> {
        let arguments =
            format!("<<\"{user}\">>, <<\"/\">>, <<\".*\">>, <<\"{write}\">>, <<\".*\">>, <<\"chaos\">>");
        self.on_any("rabbit_auth_backend_internal", "set_permissions", &arguments).await.map(drop)
    }

    /// Calls a function on the first node that answers.
    pub(crate) async fn on_any(&self, module: &str, function: &str, arguments: &str) -> Result<String> {
        let mut last = None;
        for node in 0..self.nodes.len() {
            match self.ask(node, module, function, arguments).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("there are no nodes")?)
    }

    /// Raises or lifts the memory alarm of a node.
    pub(crate) async fn alarm(&self, node: usize, is_on: bool) -> Result<()> {
        let watermark = if is_on { "0.0001" } else { WATERMARK };
        self.ask(node, "vm_memory_monitor", "set_vm_memory_high_watermark", watermark).await.map(drop)
    }

    /// Sets the size of the largest message that newly opened channels accept; `None` restores the default.
    pub(crate) async fn limit_messages(&self, bytes: Option<u64>) -> Result<()> {
        let setting = format!("rabbit, max_message_size, {}", bytes.unwrap_or(MESSAGE_LIMIT));
        for node in 0..self.nodes.len() {
            let set = self.ask(node, "application", "set_env", &setting).await;
            // Setting the limit may fail on a node that is not running. Such a node has the default limit after its start.
            if self.is_up(node).await {
                set?;
            }
        }
        Ok(())
    }

    /// Whether all nodes accept connections.
    pub(crate) async fn is_whole(&self) -> bool {
        self.count_up().await == self.nodes.len()
    }

    async fn count_up(&self) -> usize {
        let up = join_all((0..self.nodes.len()).map(|place| self.is_up(place))).await;
        up.into_iter().filter(|is_up| *is_up).count()
    }

    /// Undoes all effects of faults on the nodes. Returns when all nodes run; after `FULL_RECOVERY`, it is enough that a majority
    /// of the nodes runs, because every queue works with a majority.
    pub(crate) async fn heal(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let healed = self.heal_once().await;
            let up = self.count_up().await;
            let is_enough = begun.elapsed() > FULL_RECOVERY && up * 2 > self.nodes.len();
            if healed.is_ok() && (up == self.nodes.len() || is_enough) {
                return Ok(());
            }
            if begun.elapsed() > RECOVERY {
                return healed.and_then(|()| bail!("{up} RabbitMQ nodes are there"));
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    async fn heal_once(&self) -> Result<()> {
        for place in 0..self.nodes.len() {
            let lives = match self.nodes[place].child.lock().as_mut() {
                Some(child) => matches!(child.try_wait(), Ok(None)),
                None => false,
            };
            if !lives {
                self.begin_start(place)?;
            } else if self.is_up(place).await {
                self.alarm(place, false).await?;
            }
        }
        self.limit_messages(None).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Some(child) = node.child.lock().as_mut() {
                let _ = child.start_kill();
            }
        }
        // A node that still runs could write into the folder while the folder is deleted.
        let begun = Instant::now();
        let has_ended = |node: &Node| {
            node.child.lock().as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))))
        };
        while !self.nodes.iter().all(has_ended) && begun.elapsed() < GOODBYE {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn write_cookie(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let file = folder.join(".erlang.cookie");
    std::fs::write(&file, uuid::Uuid::new_v4().simple().to_string())?;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o400))?;
    Ok(())
}

fn write_configuration(home: &Path, address: SocketAddr, first: &str) -> Result<()> {
    std::fs::write(home.join("rabbitmq-env.conf"), "")?;
    std::fs::write(home.join("enabled_plugins"), "[].\n")?;
    std::fs::write(home.join("advanced.config"), "[].\n")?;
    let configuration = format!(
        "listeners.tcp.1 = {address}\n\
         vm_memory_high_watermark.relative = {WATERMARK}\n\
         disk_free_limit.absolute = 100MB\n\
         log.file.level = info\n\
         log.console = false\n\
         cluster_formation.peer_discovery_backend = classic_config\n\
         cluster_formation.classic_config.nodes.1 = {first}\n"
    );
    std::fs::write(home.join("rabbitmq.conf"), configuration)?;
    Ok(())
}

async fn wait_until_listening(address: SocketAddr, child: Option<&Mutex<Option<Child>>>) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        let has_ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
        if child.is_some_and(|child| child.lock().as_mut().is_some_and(has_ended)) {
            bail!("the server at {address} ended while it started");
        }
        if begun.elapsed() > BOOT {
            bail!("nothing listens at {address}");
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

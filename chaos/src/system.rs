//! The system of one run: its names, its processes and their links, and the observers of the run.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::future::join_all;
use mongodb::Database;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use crate::{
    actors::{self, Placement, Role},
    control::Control,
    ledger::{Ledger, Receiver},
    ports::free_port,
    process::Process,
    proxy::{Link, Point, Route, Traffic},
    servers::{Cluster, Set},
    timeline::Timeline,
};

/// The servers and options that all runs of a session share.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) set: Arc<Set>,
    pub(crate) cluster: Arc<Cluster>,
    /// The folder with the binaries.
    pub(crate) binaries: PathBuf,
    pub(crate) control: Option<Control>,
}

/// The system of one run.
pub(crate) struct System {
    pub(crate) servers: Servers,
    pub(crate) placement: Placement,
    pub(crate) timeline: Timeline,
    pub(crate) traffic: Traffic,
    pub(crate) ledger: Ledger,
    pub(crate) receiver: Receiver,
    pub(crate) participants: Vec<Participant>,
    /// Whether all RabbitMQ nodes ran when the queues were made.
    pub(crate) began_whole: bool,
}

/// A process, and its links to the servers.
pub(crate) struct Participant {
    pub(crate) role: Role,
    pub(crate) points: &'static [Point],
    pub(crate) process: Process,
    pub(crate) mongodb: Vec<Link>,
    pub(crate) rabbitmq: Link,
    pub(crate) http: SocketAddr,
}

impl System {
    /// Makes the queue of the harness, and starts all processes.
    pub(crate) async fn set_up(servers: Servers, seed: u64, folder: PathBuf) -> Result<Self> {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let timeline = Timeline::begin();
        let ledger = Ledger::open(&folder.join("ledger.jsonl"), &timeline)?;
        // The random number gives two runs with the same seed different names.
        let name = format!("chaos_{seed}_{}", fastrand::u32(..));
        let placement = Placement {
            mongodb: String::new(),
            rabbitmq: String::new(),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            state_database: format!("{name}_state"),
            prefix: name.clone(),
            database: name,
            folder,
            binaries: servers.binaries.clone(),
            control: servers.control,
        };

        let began_whole = servers.cluster.is_whole().await;
        let queue = format!("{}.ledger", placement.prefix);
        let receiver =
            Receiver::start(servers.cluster.clone(), placement.messages_exchange(), queue, ledger.clone())
                .await?;
        let traffic = Traffic::default();
        let (lines, printed) = mpsc::unbounded_channel();
        tokio::spawn(listen(printed, ledger.clone()));

        let mut participants = Vec::new();
        for actor in actors::ALL {
            let is_out = servers.control == Some(Control::NoRescuer) && actor.role() == Role::Rescuer;
            for name in actor.names().iter().filter(|_| !is_out) {
                participants
                    .push(Participant::enter(*actor, name, &servers, &placement, &traffic, &lines).await?);
            }
        }
        Ok(Self { servers, placement, timeline, traffic, ledger, receiver, participants, began_whole })
    }

    pub(crate) fn database(&self) -> Database {
        self.servers.set.database(&self.placement.database)
    }

    pub(crate) fn state(&self) -> Database {
        self.servers.set.database(&self.placement.state_database)
    }

    pub(crate) fn of_role(&self, role: Role) -> impl Iterator<Item = &Participant> {
        self.participants.iter().filter(move |participant| participant.role == role)
    }

    /// Undoes all effects of faults on processes and links.
    pub(crate) fn heal_processes(&self) {
        for participant in &self.participants {
            participant.heal();
        }
    }

    /// Ends all processes, and deletes the queues and databases. For each process that had to be killed, returns a sentence that
    /// names the process.
    pub(crate) async fn strike(self) -> Vec<String> {
        let ends = self.participants.iter().map(|participant| async {
            let forced = participant.process.stop().await;
            forced.then(|| format!("{} didn't end when asked to", participant.process.name))
        });
        let forced = join_all(ends).await.into_iter().flatten().collect();

        let queues = [self.receiver.queue.clone(), self.placement.commands_queue()];
        for queue in queues {
            let _ = self.receiver.delete(&queue).await;
        }
        self.receiver.stop().await;
        let set = &self.servers.set;
        for database in [&self.placement.database, &self.placement.state_database] {
            let _ = timeout(Duration::from_secs(10), set.database(database).drop()).await;
        }
        self.ledger.flush();
        forced
    }
}

/// Passes each line that a process prints to the ledger.
async fn listen(mut printed: mpsc::UnboundedReceiver<(String, String)>, ledger: Ledger) {
    while let Some((process, line)) = printed.recv().await {
        ledger.hear(&process, &line);
    }
}

impl Participant {
    async fn enter(
        actor: &'static dyn actors::Actor,
        name: &str,
        servers: &Servers,
        placement: &Placement,
        traffic: &Traffic,
        lines: &mpsc::UnboundedSender<(String, String)>,
    ) -> Result<Self> {
        let pid = Arc::default();
        let route = |is_amqp, servers| Route { process: name.to_owned(), is_amqp, servers };
        let mut mongodb = Vec::new();
        for member in &servers.set.members {
            mongodb.push(Link::open(route(false, vec![*member]), traffic.clone(), Arc::clone(&pid)).await?);
        }
        let renamed: Vec<_> =
            servers.set.members.iter().copied().zip(mongodb.iter().map(|link| link.address)).collect();
        for link in &mongodb {
            link.rename(&renamed);
        }
        let rabbitmq =
            Link::open(route(true, servers.cluster.addresses()), traffic.clone(), Arc::clone(&pid)).await?;

        let hosts: Vec<_> = mongodb.iter().map(|link| link.address.to_string()).collect();
        let placement = Placement {
            mongodb: format!(
                "mongodb://{}/?replicaSet={}&heartbeatFrequencyMS={}",
                hosts.join(","),
                servers.set.name,
                crate::settings::MONGODB_HEARTBEAT.as_millis()
            ),
            rabbitmq: Cluster::uri(rabbitmq.address, name),
            http: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
            ..placement.clone()
        };
        let http = placement.http;
        let process = Process::start(actor.program(name, &placement), pid, lines.clone())?;
        Ok(Self { role: actor.role(), points: actor.points(), process, mongodb, rabbitmq, http })
    }

    pub(crate) fn name(&self) -> &str {
        &self.process.name
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = &Link> {
        self.mongodb.iter().chain([&self.rabbitmq])
    }

    pub(crate) fn heal(&self) {
        for link in self.links() {
            link.heal();
        }
        self.process.wake();
        let _ = self.process.set_clock(0);
    }

    /// Returns the response of the process's HTTP server, including the head of the response.
    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        let asked = async {
            let mut stream = TcpStream::connect(self.http).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        Ok(timeout(Duration::from_secs(2), asked).await.context("no answer in time")??)
    }

    /// Returns the value of a metric that this process serves, summed over all labels; 0 if the process does not answer.
    pub(crate) async fn series(&self, name: &str) -> f64 {
        let answer = self.get("/metrics").await.unwrap_or_default();
        let of_name = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        let value = |line: &str| line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok());
        answer.lines().filter(of_name).filter_map(value).sum()
    }

    /// Waits until the condition is true, but no longer than `within`. Returns whether it became true.
    pub(crate) async fn wait_until(within: Duration, mut is_so: impl AsyncFnMut() -> bool) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < within {
            if is_so().await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }
}

impl System {
    /// Creates the two indexes that the library needs on a collection. In production an operator creates these indexes.
    pub(crate) async fn ensure_indexes(&self, collection: &str) -> Result<()> {
        let documents = self.database().collection::<mongodb::bson::Document>(collection);
        documents.create_indexes(document_outbox::store::indexes()).await?;
        Ok(())
    }
}

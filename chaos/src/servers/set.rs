//! The three-node MongoDB set that `scripts/services up --replicas 3` starts.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mongodb::{
    Client, Database,
    bson::{Bson, Document, doc},
    options::{ClientOptions, ServerAddress, WriteConcern},
};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

/// How long a command to one member may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the set may take to recover.
const RECOVERY: Duration = Duration::from_secs(40);

/// The MongoDB set. The harness connects to it directly and not through a link.
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) members: Vec<SocketAddr>,
    pub(crate) client: Client,
    direct: Vec<Client>,
    /// The folder of the checkout, in which `scripts/services` is.
    checkout: PathBuf,
}

impl Set {
    pub(crate) async fn reach(uri: &str, checkout: PathBuf) -> Result<Self> {
        let mut options = ClientOptions::parse(uri).await?;
        let name = options.repl_set_name.clone().context("the URI names no replica set")?;
        let mut members = Vec::new();
        let mut direct = Vec::new();
        for host in options.hosts.clone() {
            members.push(host.to_string().parse()?);
            direct.push(member_client(host).await?);
        }
        options.server_selection_timeout = Some(PATIENCE);
        options.connect_timeout = Some(Duration::from_secs(2));
        options.heartbeat_freq = Some(crate::settings::MONGODB_HEARTBEAT);
        Ok(Self { name, members, client: Client::with_options(options)?, direct, checkout })
    }

    /// Runs a command on the member with this index.
    pub(crate) async fn on(&self, member: usize, command: Document) -> Result<Document> {
        let admin = self.direct[member].database("admin");
        Ok(timeout(PATIENCE, admin.run_command(command)).await.context("no answer in time")??)
    }

    /// Returns the index of the member that reports that it is the primary.
    pub(crate) async fn primary(&self) -> Option<usize> {
        for member in 0..self.members.len() {
            let hello = timeout(Duration::from_secs(1), self.on(member, doc! { "hello": 1 })).await;
            if let Ok(Ok(hello)) = hello
                && hello.get_bool("isWritablePrimary").unwrap_or(false)
            {
                return Some(member);
            }
        }
        None
    }

    pub(crate) async fn wait_for_primary(&self) -> Result<usize> {
        let begun = Instant::now();
        loop {
            if let Some(primary) = self.primary().await {
                return Ok(primary);
            }
            if begun.elapsed() > RECOVERY {
                bail!("the set has no primary");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns the indexes of the secondaries.
    pub(crate) async fn secondaries(&self) -> Result<Vec<usize>> {
        let primary = self.wait_for_primary().await?;
        Ok((0..self.members.len()).filter(|member| *member != primary).collect())
    }

    /// Returns the process id of a member.
    pub(crate) fn pid(&self, member: usize) -> Option<i32> {
        let port = self.members[member].port();
        let file = self.checkout.join(format!(".services/mongod-{port}.pid"));
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Starts a member that was killed.
    pub(crate) async fn start(&self, member: usize) -> Result<()> {
        let port = self.members[member].port().to_string();
        let started = Command::new(self.checkout.join("scripts/services"))
            .args(["start", &port])
            .stdin(Stdio::null())
            .output();
        let output = timeout(RECOVERY, started).await.context("the member didn't start in time")??;
        if !output.status.success() {
            bail!("member {port} can't be started: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Enables or disables a fail point on these members.
    pub(crate) async fn fail_point(&self, members: &[usize], name: &str, is_on: bool) -> Result<()> {
        let mode = if is_on { "alwaysOn" } else { "off" };
        for member in members {
            self.on(*member, doc! { "configureFailPoint": name, "mode": mode }).await?;
        }
        Ok(())
    }

    /// Makes the secondaries apply every write this many seconds late; 0 restores the normal state.
    pub(crate) async fn set_lag(&self, seconds: i64) -> Result<()> {
        let primary = self.wait_for_primary().await?;
        let reply = self.on(primary, doc! { "replSetGetConfig": 1 }).await?;
        let mut config = reply.get_document("config")?.clone();
        config.insert("version", config.get_i32("version")? + 1);
        for (place, member) in config.get_array_mut("members")?.iter_mut().enumerate() {
            let Bson::Document(member) = member else { continue };
            let is_late = seconds > 0 && place != primary;
            member.insert("priority", i32::from(!is_late));
            member.insert("hidden", is_late);
            member.insert("secondaryDelaySecs", if is_late { seconds } else { 0 });
        }
        self.on(primary, doc! { "replSetReconfig": config, "force": true }).await?;
        Ok(())
    }

    /// Whether the configuration of the set makes any member apply writes late.
    async fn has_lag(&self, primary: usize) -> Result<bool> {
        let reply = self.on(primary, doc! { "replSetGetConfig": 1 }).await?;
        let members = reply.get_document("config")?.get_array("members")?.clone();
        let is_hidden =
            |member: &Bson| member.as_document().is_some_and(|member| member.get_bool("hidden") == Ok(true));
        Ok(members.iter().any(is_hidden))
    }

    /// Makes one majority write, and returns how long the write took; `None` if the write took longer than
    /// `within`.
    pub(crate) async fn majority_answers(&self, within: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let probes = self.client.database("chaos_probe").collection::<Document>("probes");
        let written = probes.insert_one(doc! { "of": "harness" }).write_concern(WriteConcern::majority());
        match timeout(within, written).await {
            Ok(Ok(_)) => Some(begun.elapsed()),
            _ => None,
        }
    }

    /// Undoes all effects of faults on the members, and returns when the majority answers.
    pub(crate) async fn heal(&self) -> Result<()> {
        for member in 0..self.members.len() {
            let lives = self.pid(member).is_some_and(|pid| PathBuf::from(format!("/proc/{pid}")).exists());
            if !lives {
                self.start(member).await?;
            }
            for name in ["rsSyncApplyStop", "failCommand"] {
                let _ = self.fail_point(&[member], name, false).await;
            }
        }
        let primary = self.wait_for_primary().await?;
        if self.has_lag(primary).await? {
            self.set_lag(0).await?;
        }

        let begun = Instant::now();
        while !self.is_whole().await {
            if begun.elapsed() > RECOVERY {
                bail!("the set isn't whole again");
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Whether every member runs and a majority write is done without delay.
    async fn is_whole(&self) -> bool {
        for member in 0..self.members.len() {
            let Ok(hello) = self.on(member, doc! { "hello": 1 }).await else { return false };
            let is = |field| hello.get_bool(field).unwrap_or(false);
            if !is("isWritablePrimary") && !is("secondary") {
                return false;
            }
        }
        self.majority_answers(Duration::from_secs(2)).await.is_some()
    }

    pub(crate) fn database(&self, name: &str) -> Database {
        self.client.database(name)
    }
}

async fn member_client(host: ServerAddress) -> Result<Client> {
    let mut options = ClientOptions::parse(format!("mongodb://{host}/?directConnection=true")).await?;
    options.server_selection_timeout = Some(Duration::from_secs(2));
    options.connect_timeout = Some(Duration::from_secs(2));
    options.heartbeat_freq = Some(crate::settings::MONGODB_HEARTBEAT);
    Ok(Client::with_options(options)?)
}

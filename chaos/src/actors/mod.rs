//! The kinds of processes in a storm. To add a kind, add a file to this folder and a line to [`ALL`].

mod application;
mod dispatcher;
mod rescuer;

use std::{net::SocketAddr, path::PathBuf};

use crate::{process::Program, proxy::Point};

/// A kind of process in a storm.
pub(crate) trait Actor: Sync {
    /// Returns the names of the processes of this kind.
    fn names(&self) -> &'static [&'static str];

    fn role(&self) -> Role;

    /// Returns the points at which a process of this kind can be killed.
    fn points(&self) -> &'static [Point];

    /// Describes how to start the process with this name.
    fn program(&self, name: &str, placement: &Placement) -> Program;
}

/// All kinds of processes.
pub(crate) const ALL: &[&dyn Actor] =
    &[&application::Application, &rescuer::Rescuer, &dispatcher::Dispatcher];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Application,
    Rescuer,
    Dispatcher,
}

/// The addresses, names and folders that the harness needs to start a process.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) mongodb: String,
    pub(crate) rabbitmq: String,
    pub(crate) http: SocketAddr,
    pub(crate) database: String,
    pub(crate) state_database: String,
    /// The prefix of the names of exchanges and queues.
    pub(crate) prefix: String,
    pub(crate) folder: PathBuf,
    /// The folder with the real binaries.
    pub(crate) binaries: PathBuf,
    pub(crate) control: Option<crate::control::Control>,
}

impl Placement {
    pub(crate) fn messages_exchange(&self) -> String {
        format!("{}.messages", self.prefix)
    }

    pub(crate) fn commands_exchange(&self) -> String {
        format!("{}.commands", self.prefix)
    }

    pub(crate) fn commands_queue(&self) -> String {
        format!("{}.process", self.prefix)
    }
}

/// The log filter of all processes. It keeps the log lines that help to explain a duplicate.
const LOG_FILTER: &str = "info,lapin=warn,document_outbox::dispatch=debug";

/// Returns the settings that the rescuer and the dispatcher share.
fn service_environment(placement: &Placement) -> Vec<(String, String)> {
    let namespace = |collection: &str| format!("{}.{collection}", placement.database);
    [
        ("OUTBOX_MONGODB_URI", placement.mongodb.clone()),
        ("OUTBOX_RABBITMQ_URI", placement.rabbitmq.clone()),
        ("OUTBOX_WATCH", namespace("*")),
        ("OUTBOX_UNORDERED", namespace("unordered")),
        ("OUTBOX_DEAD_BLOCKS", namespace("dead_blocks")),
        ("OUTBOX_STATE_DATABASE", placement.state_database.clone()),
        ("OUTBOX_COMMANDS_EXCHANGE", placement.commands_exchange()),
        ("OUTBOX_COMMANDS_QUEUE", placement.commands_queue()),
        ("OUTBOX_HTTP_LISTEN", placement.http.to_string()),
        ("OUTBOX_SHUTDOWN_GRACE", "1s".to_owned()),
        ("OUTBOX_LOG_FILTER", LOG_FILTER.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

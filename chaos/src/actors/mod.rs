//! Who takes part in a storm. An actor is one file here, and its line in [`ALL`].

mod application;
mod dispatcher;
mod rescuer;

use std::{net::SocketAddr, path::PathBuf};

use crate::{process::Program, proxy::Point};

/// A kind of process.
pub(crate) trait Actor: Sync {
    /// One process for each name.
    fn names(&self) -> &'static [&'static str];

    fn role(&self) -> Role;

    /// The points at which it can be killed.
    fn points(&self) -> &'static [Point];

    /// How to start the process of this name.
    fn program(&self, name: &str, placement: &Placement) -> Program;
}

/// All of them.
pub(crate) const ALL: &[&dyn Actor] =
    &[&application::Application, &rescuer::Rescuer, &dispatcher::Dispatcher];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Application,
    Rescuer,
    Dispatcher,
}

/// Where a process finds everything.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) mongodb: String,
    pub(crate) rabbitmq: String,
    pub(crate) http: SocketAddr,
    pub(crate) database: String,
    pub(crate) state_database: String,
    /// What the names of exchanges and queues begin with.
    pub(crate) prefix: String,
    pub(crate) folder: PathBuf,
    /// Where the real binaries are.
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

/// With what explains a duplicate to a reader.
const LOG_FILTER: &str = "info,lapin=warn,document_outbox::dispatch=debug";

/// The settings that both services have in common.
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

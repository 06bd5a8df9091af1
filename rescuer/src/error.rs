//! Why a rescuer ended.

use outbox_service::InvalidSettings;

/// Why a rescuer cannot work, or cannot continue. Outages that end by themselves (elections, networks, brokers) are not among
/// these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RescuerError {
    /// The settings cannot work.
    #[error("the settings cannot work: {0}")]
    Settings(InvalidSettings),
    /// A server without change streams.
    #[error(
        "MongoDB at this address is a single server without a replica set, which has no change streams; start it with \
         --replSet and run rs.initiate() once, even for one server"
    )]
    NotAReplicaSet,
    /// Cosmos DB with request units.
    #[error(
        "this is Azure Cosmos DB's request-unit API for MongoDB, whose change streams need `updateLookup` and lose \
         changes for an outbox; use MongoDB itself, Atlas, or Cosmos DB's vCore service"
    )]
    CosmosDb,
    /// The server refuses permanently.
    #[error("could not {doing}: {advice}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// What to do.
        advice: &'static str,
        /// What the server said.
        source: mongodb::error::Error,
    },
    /// The position is lost and `on_history_lost` is `fail`.
    #[error(
        "the position of stream {stream:?} is lost ({reason}) and on_history_lost is `fail`; set it to \
         `sweep`, which finds every undelivered message and continues, or delete that document of \
         `positions` in the state database"
    )]
    PositionLost {
        /// Which stream.
        stream: String,
        /// Why it is lost.
        reason: String,
    },
    /// A part of it panicked, so the rest was stopped.
    #[error(
        "{0} panicked, which is a defect; please report the panic in the log, and start the rescuer again"
    )]
    Panicked(&'static str),
}

impl RescuerError {
    /// Whether the whole process is unreliable now.
    pub(crate) fn is_defect(&self) -> bool {
        matches!(self, Self::Panicked(_))
    }

    /// In one line.
    pub(crate) fn with_source(&self) -> String {
        match self {
            Self::Refused { source, .. } => format!("{self}: {}", source.kind),
            error => error.to_string(),
        }
    }
}

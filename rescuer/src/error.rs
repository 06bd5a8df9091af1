//! Why a rescuer ended.

use outbox_service::InvalidSettings;

/// Why a rescuer cannot start, or cannot continue. Outages that end by themselves (elections,
/// networks, brokers) are not among these errors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RescuerError {
    /// The settings cannot work.
    #[error("the settings cannot work: {0}")]
    Settings(InvalidSettings),
    /// The server has no change streams.
    #[error(
        "MongoDB at this address is a single server without a replica set, which has no change streams; start it with \
         --replSet and run rs.initiate() once, even for one server"
    )]
    NotAReplicaSet,
    /// The server is Cosmos DB with request units, which a rescuer can't use.
    #[error(
        "this is Azure Cosmos DB's request-unit API for MongoDB, whose change streams need `updateLookup` and lose \
         changes for an outbox; use MongoDB itself, Atlas, or Cosmos DB's vCore service"
    )]
    CosmosDb,
    /// The server permanently refuses an operation that the rescuer needs.
    #[error("could not {doing}: {advice}")]
    Refused {
        /// The operation that failed.
        doing: &'static str,
        /// The advice to the operator.
        advice: &'static str,
        /// The server's error.
        source: mongodb::error::Error,
    },
    /// The position is lost and `on_history_lost` is `fail`.
    #[error(
        "the position of stream {stream:?} is lost ({reason}) and on_history_lost is `fail`; either set \
         on_history_lost to `sweep`, which finds every undelivered message and then continues, or delete the stream's \
         document from the collection `positions` in the state database"
    )]
    PositionLost {
        /// The name of the stream.
        stream: String,
        /// Why the position is lost.
        reason: String,
    },
    /// A task of the rescuer panicked, so the rescuer stopped its other tasks.
    #[error(
        "{0} panicked, which is a defect; please report the panic in the log, and start the rescuer again"
    )]
    Panicked(&'static str),
}

impl RescuerError {
    /// Whether the whole process can no longer be relied on.
    pub(crate) fn is_defect(&self) -> bool {
        matches!(self, Self::Panicked(_))
    }

    /// The error and its source in one line.
    pub(crate) fn with_source(&self) -> String {
        match self {
            Self::Refused { source, .. } => format!("{self}: {}", source.kind),
            error => error.to_string(),
        }
    }
}

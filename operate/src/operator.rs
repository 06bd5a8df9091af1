//! The servers and settings that every operation uses.

use std::{fmt, time::Duration};

use document_outbox::{
    DeliveryOrder,
    amqp::AmqpSettings,
    command::COMMANDS_QUEUE,
    deliver::{AttributePrefix, MESSAGES_EXCHANGE, PayloadFormat},
    internal::ServerClock,
};
use mongodb::{
    Client, Collection, Database, Namespace,
    bson::{DateTime, RawDocumentBuf},
    options::{CollectionOptions, ReadPreference, SelectionCriteria},
};
use outbox_service::NamespacePattern;

use crate::error::OperateError;

/// Which member of the replica set answers the queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadFrom {
    /// The primary, which has the newest data.
    #[default]
    Primary,
    /// A secondary if there is one, which spares the primary.
    Secondary,
}

/// The facts about the system that the operations need. The names are those of the services' settings.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OperatorSettings {
    /// The collections with outboxes.
    pub watch: Vec<NamespacePattern>,
    /// The collections whose messages may be delivered out of order.
    pub unordered: Vec<NamespacePattern>,
    /// The collections in which a dead message blocks the later ones of its document.
    pub dead_blocks: Vec<NamespacePattern>,
    /// The database for positions and leases.
    pub state_database: String,
    /// The queue from which commands are consumed.
    pub commands_queue: String,
    /// The exchange to which messages are published.
    pub messages_exchange: String,
    /// The format in which payloads are published.
    pub payload_format: PayloadFormat,
    /// The prefix of CloudEvents attributes.
    pub attribute_prefix: AttributePrefix,
    /// The broker; `None` if the operator gave none, so that its parts are left out.
    pub rabbitmq: Option<AmqpSettings>,
    /// The member that answers the queries.
    pub read_from: ReadFrom,
    /// The time limit of each query.
    pub max_time: Duration,
}

impl OperatorSettings {
    /// The settings for these collections, with the defaults of the services.
    pub fn new(watch: Vec<NamespacePattern>) -> Self {
        Self {
            watch,
            unordered: Vec::new(),
            dead_blocks: Vec::new(),
            state_database: "document_outbox".to_owned(),
            commands_queue: COMMANDS_QUEUE.to_owned(),
            messages_exchange: MESSAGES_EXCHANGE.to_owned(),
            payload_format: PayloadFormat::default(),
            attribute_prefix: AttributePrefix::default(),
            rabbitmq: None,
            read_from: ReadFrom::default(),
            max_time: Duration::from_secs(30),
        }
    }

    /// Changes settings in a chain, because the struct can gain fields.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// Runs the operations. It is cheap to clone.
#[derive(Clone)]
pub struct Operator {
    pub(crate) client: Client,
    pub(crate) settings: OperatorSettings,
    clock: ServerClock,
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Operator {
    /// Creates an operator. Nothing connects yet.
    pub fn new(client: Client, settings: OperatorSettings) -> Self {
        let clock = ServerClock::new(client.clone());
        Self { client, settings, clock }
    }

    /// The settings.
    pub fn settings(&self) -> &OperatorSettings {
        &self.settings
    }

    /// The server's time, by which states are derived.
    pub async fn now(&self) -> Result<DateTime, OperateError> {
        self.clock.now().await.map_err(OperateError::reading("the server's time"))
    }

    /// The order in which this collection's messages are delivered.
    pub fn ordering(&self, namespace: &Namespace) -> DeliveryOrder {
        let is_in = |patterns: &[NamespacePattern]| {
            NamespacePattern::any_matches(patterns, &namespace.db, &namespace.coll)
        };
        if is_in(&self.settings.unordered) {
            DeliveryOrder::Unordered
        } else if is_in(&self.settings.dead_blocks) {
            DeliveryOrder::DeadBlocks
        } else {
            DeliveryOrder::Ordered
        }
    }

    pub(crate) fn collection(&self, namespace: &Namespace) -> Collection<RawDocumentBuf> {
        let options = CollectionOptions::builder().selection_criteria(self.criteria()).build();
        self.client.database(&namespace.db).collection_with_options(&namespace.coll, options)
    }

    pub(crate) fn state_database(&self) -> Database {
        self.client.database(&self.settings.state_database)
    }

    /// Selects the member that answers a query.
    pub(crate) fn criteria(&self) -> SelectionCriteria {
        SelectionCriteria::ReadPreference(match self.settings.read_from {
            ReadFrom::Primary => ReadPreference::Primary,
            ReadFrom::Secondary => ReadPreference::SecondaryPreferred { options: None },
        })
    }

    pub(crate) fn is_watched(&self, namespace: &Namespace) -> bool {
        namespace.db != self.settings.state_database
            && NamespacePattern::any_matches(&self.settings.watch, &namespace.db, &namespace.coll)
    }
}

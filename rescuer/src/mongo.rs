//! Access to MongoDB: read and write concerns, and the server's times.

use std::time::Duration;

use document_outbox::internal::ServerClock;
use mongodb::{
    Client, Collection, Database, Namespace,
    bson::{DateTime, Document, RawDocumentBuf, Timestamp, doc},
    error::Error,
    options::{
        Acknowledgment, CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
    },
};

/// The names of collections in the state database.
pub(crate) const LEASES: &str = "leases";
pub(crate) const POSITIONS: &str = "positions";

/// How long a write to the state database waits for the majority. If there is no majority, the
/// write then ends with an error instead of hanging.
const MAJORITY_WITHIN: Duration = Duration::from_secs(10);

/// A rescuer's connection, and its estimate of the server's clock.
#[derive(Clone)]
pub(crate) struct Mongo {
    client: Client,
    clock: ServerClock,
}

impl Mongo {
    pub(crate) fn new(client: Client) -> Self {
        Self { clock: ServerClock::new(client.clone()), client }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn database(&self, name: &str) -> Database {
        self.client.database(name)
    }

    /// A collection for reading documents. It reads from the primary, which has every write that a
    /// change stream has shown.
    pub(crate) fn collection(&self, namespace: &Namespace) -> Collection<RawDocumentBuf> {
        let primary = CollectionOptions::builder().selection_criteria(primary()).build();
        self.client.database(&namespace.db).collection_with_options(&namespace.coll, primary)
    }

    /// Server time.
    pub(crate) async fn now(&self) -> Result<DateTime, Error> {
        self.clock.now().await
    }

    /// The server's current cluster time: a change stream that starts at this time shows every
    /// later write.
    pub(crate) async fn operation_time(&self) -> Result<Timestamp, Error> {
        let reply = self.ping(None).await?;
        reply
            .get_timestamp("operationTime")
            .map_err(|error| Error::custom(format!("the reply to `ping`: {error}")))
    }

    /// The cluster time up to which the primary has every write; `None` if the primary's reply has
    /// no such time.
    pub(crate) async fn primary_time(&self) -> Result<Option<Timestamp>, Error> {
        let reply = self.ping(Some(primary())).await?;
        Ok(reply.get_timestamp("operationTime").ok())
    }

    /// The latest time that this cluster knows of.
    pub(crate) async fn cluster_time(&self) -> Result<Timestamp, Error> {
        let reply = self.ping(None).await?;
        let gossiped = reply.get_document("$clusterTime").and_then(|time| time.get_timestamp("clusterTime"));
        let latest = gossiped.ok().max(reply.get_timestamp("operationTime").ok());
        latest.ok_or_else(|| Error::custom("the reply to `ping` has no cluster time"))
    }

    async fn ping(&self, on: Option<SelectionCriteria>) -> Result<Document, Error> {
        let admin = self.client.database("admin");
        let ping = admin.run_command(doc! { "ping": 1 });
        match on {
            Some(on) => ping.selection_criteria(on).await,
            None => ping.await,
        }
    }
}

pub(crate) fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}

/// Options for the collections of the state database. They use majority concern, so a failover undoes neither
/// a write nor data that was read.
pub(crate) fn lasting() -> CollectionOptions {
    let majority = WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(MAJORITY_WITHIN).build();
    CollectionOptions::builder()
        .read_concern(ReadConcern::majority())
        .write_concern(majority)
        .selection_criteria(primary())
        .build()
}

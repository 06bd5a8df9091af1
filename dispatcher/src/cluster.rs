//! The MongoDB cluster of this worker.
//!
//! A command names its cluster by the UUID that the server gave the collection of positions in the state
//! database. It is read here, and read again when a command names another one, because the collection may
//! have been recreated.

use std::time::Duration;

use document_outbox::internal::error_codes;
use mongodb::{Database, bson::doc, error::Error};
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::mongodb_errors::UNAUTHORISED;

const POSITIONS: &str = "positions";
/// The shortest time between two reads.
const PAUSE: Duration = Duration::from_secs(5);

/// The cluster of this worker, as far as it is known. See the module.
pub(crate) struct Cluster {
    state: Database,
    known: Mutex<Reading>,
}

/// The last reading, and its time.
#[derive(Debug, Clone, Copy)]
struct Reading {
    name: ClusterName,
    read: Option<Instant>,
}

/// MongoDB's answer about the collection of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterName {
    Named(Uuid),
    /// There is no such collection: no rescuer of this cluster ever wrote a position.
    Unnamed,
    /// This user may not ask.
    Unreadable,
}

/// The cluster that a command belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    ThisCluster,
    OtherCluster,
    /// This cluster has no name. If the document isn't here, the command belongs to another cluster.
    Unknown,
}

impl Cluster {
    pub(crate) fn new(state: Database) -> Self {
        let nothing = Reading { name: ClusterName::Unreadable, read: None };
        Self { state, known: Mutex::new(nothing) }
    }

    /// Asks MongoDB, unless it was asked a moment ago.
    ///
    /// # Errors
    /// MongoDB could not be asked; the known UUID stays.
    pub(crate) async fn ask(&self) -> Result<(), Error> {
        if self.known().read.is_some_and(|read| read.elapsed() < PAUSE) {
            return Ok(());
        }

        let name = self.read().await?;
        let reading = Reading { name, read: Some(Instant::now()) };
        *self.known.lock() = reading;
        Ok(())
    }

    /// The origin of a command that names this cluster, or none.
    pub(crate) async fn home_of(&self, named: Option<Uuid>) -> Origin {
        if home(self.known().name, named) == Origin::ThisCluster {
            return Origin::ThisCluster;
        }

        // The name may have changed. Without an answer, the known name counts.
        let _ = self.ask().await;
        home(self.known().name, named)
    }

    fn known(&self) -> Reading {
        *self.known.lock()
    }

    async fn read(&self) -> Result<ClusterName, Error> {
        let listed = self.state.list_collections().filter(doc! { "name": POSITIONS }).await;
        let mut listed = match listed {
            Err(error) if error_codes::code(&error) == Some(UNAUTHORISED) => {
                return Ok(ClusterName::Unreadable);
            }
            listed => listed?,
        };
        if !listed.advance().await? {
            return Ok(ClusterName::Unnamed);
        }

        let uuid = listed.deserialize_current()?.info.uuid.and_then(|uuid| uuid.to_uuid().ok());
        Ok(match uuid {
            Some(uuid) => ClusterName::Named(Uuid::from_bytes(uuid.bytes())),
            None => ClusterName::Unreadable,
        })
    }
}

/// The origin of a command that names a cluster, or none, for a worker of the cluster `here`.
fn home(here: ClusterName, named: Option<Uuid>) -> Origin {
    match (here, named) {
        (_, None) | (ClusterName::Unreadable, _) => Origin::ThisCluster,
        (ClusterName::Named(here), Some(named)) if here == named => Origin::ThisCluster,
        (ClusterName::Named(_), Some(_)) => Origin::OtherCluster,
        (ClusterName::Unnamed, Some(_)) => Origin::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_known_to_differ_is_elsewhere() {
        let [one, other] = [1, 2].map(|byte| Uuid::from_bytes([byte; 16]));
        for here in [ClusterName::Named(one), ClusterName::Unnamed, ClusterName::Unreadable] {
            assert_eq!(home(here, None), Origin::ThisCluster);
        }
        assert_eq!(home(ClusterName::Named(one), Some(one)), Origin::ThisCluster);
        assert_eq!(home(ClusterName::Named(one), Some(other)), Origin::OtherCluster);
        assert_eq!(home(ClusterName::Unnamed, Some(other)), Origin::Unknown);
        assert_eq!(home(ClusterName::Unreadable, Some(other)), Origin::ThisCluster);
    }
}

//! The MongoDB cluster that this worker belongs to.
//!
//! A command names its cluster by the UUID that the server assigned to the collection of positions in the
//! state database. The worker reads this UUID at the start, and again when a command names another UUID,
//! because the collection may have been recreated.

use std::time::Duration;

use document_outbox::internal::error_codes;
use mongodb::{Database, bson::doc, error::Error};
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::mongodb_errors::UNAUTHORISED;

const POSITIONS: &str = "positions";
/// The minimum time between two reads of the UUID.
const PAUSE: Duration = Duration::from_secs(5);

/// The identity of this worker's cluster, as far as it is known; see the module's documentation.
pub(crate) struct Cluster {
    state: Database,
    known: Mutex<Reading>,
}

/// The result of the last read of the UUID, and the time of this read.
#[derive(Debug, Clone, Copy)]
struct Reading {
    name: ClusterName,
    read: Option<Instant>,
}

/// MongoDB's answer about the collection of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterName {
    Named(Uuid),
    /// The state database has no collection of positions, so no rescuer of this cluster has ever written a
    /// position.
    Unnamed,
    /// The MongoDB user has no permission to read the UUID.
    Unreadable,
}

/// The cluster that a command belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    ThisCluster,
    OtherCluster,
    /// This cluster has no collection of positions, so there is no UUID to compare with the one in the
    /// command. If the command's document does not exist here, the command is from another cluster.
    Unknown,
}

impl Cluster {
    pub(crate) fn new(state: Database) -> Self {
        let nothing = Reading { name: ClusterName::Unreadable, read: None };
        Self { state, known: Mutex::new(nothing) }
    }

    /// Asks MongoDB for the UUID, unless MongoDB returned it within the last [`PAUSE`].
    ///
    /// # Errors
    /// Returns an error if the UUID could not be read. The UUID that was read earlier then stays in use.
    pub(crate) async fn ask(&self) -> Result<(), Error> {
        if self.known().read.is_some_and(|read| read.elapsed() < PAUSE) {
            return Ok(());
        }

        let name = self.read().await?;
        let reading = Reading { name, read: Some(Instant::now()) };
        *self.known.lock() = reading;
        Ok(())
    }

    /// The origin of a command. `named` is the cluster that the command names, if it names one.
    pub(crate) async fn home_of(&self, named: Option<Uuid>) -> Origin {
        if home(self.known().name, named) == Origin::ThisCluster {
            return Origin::ThisCluster;
        }

        // The UUID of this cluster's collection may have changed. If MongoDB doesn't answer, the UUID that
        // was read earlier is compared again.
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

/// The origin of a command, for a worker in the cluster `here`. `named` is the cluster that the command
/// names, if it names one.
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

//! Which MongoDB cluster this worker is at.
//!
//! A command names its cluster by the UUID that the server gave the collection of positions in the state database. Here it is
//! asked for, and asked for again when a command names another: the collection may have been made anew.

use std::time::Duration;

use document_outbox::internal::error_codes;
use mongodb::{
    Database,
    bson::{Uuid, doc},
    error::Error,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::mongodb_errors::UNAUTHORISED;

const POSITIONS: &str = "positions";
/// It is not asked for again before.
const PAUSE: Duration = Duration::from_secs(5);

/// The cluster of this worker, as far as it is known. See the module.
pub(crate) struct Cluster {
    state: Database,
    known: Mutex<Reading>,
}

/// What was last read, and when.
#[derive(Debug, Clone, Copy)]
struct Reading {
    name: ClusterName,
    read: Option<Instant>,
}

/// What MongoDB says of the collection of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterName {
    Named(Uuid),
    /// There is no such collection: no rescuer of this cluster ever wrote a position.
    Unnamed,
    /// This user may not ask.
    Unreadable,
}

/// Where a command belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    Here,
    Elsewhere,
    /// This cluster has no name. If the document isn't here, the command belongs elsewhere.
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
    /// That it could not be asked; what was known before stays.
    pub(crate) async fn ask(&self) -> Result<(), Error> {
        if self.known().read.is_some_and(|read| read.elapsed() < PAUSE) {
            return Ok(());
        }

        let name = self.read().await?;
        let reading = Reading { name, read: Some(Instant::now()) };
        *self.known.lock() = reading;
        Ok(())
    }

    /// Where a command belongs that names this cluster, or none.
    pub(crate) async fn home_of(&self, named: Option<Uuid>) -> Home {
        if home(self.known().name, named) == Home::Here {
            return Home::Here;
        }

        // The name may have changed. Without an answer, what was known before counts.
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
            Some(uuid) => ClusterName::Named(uuid),
            None => ClusterName::Unreadable,
        })
    }
}

/// Where a command belongs that names a cluster, or none, for a worker at the one called `here`.
fn home(here: ClusterName, named: Option<Uuid>) -> Home {
    match (here, named) {
        (_, None) | (ClusterName::Unreadable, _) => Home::Here,
        (ClusterName::Named(here), Some(named)) if here == named => Home::Here,
        (ClusterName::Named(_), Some(_)) => Home::Elsewhere,
        (ClusterName::Unnamed, Some(_)) => Home::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_known_to_differ_is_elsewhere() {
        let [one, other] = [1, 2].map(|byte| Uuid::from_bytes([byte; 16]));
        for here in [ClusterName::Named(one), ClusterName::Unnamed, ClusterName::Unreadable] {
            assert_eq!(home(here, None), Home::Here);
        }
        assert_eq!(home(ClusterName::Named(one), Some(one)), Home::Here);
        assert_eq!(home(ClusterName::Named(one), Some(other)), Home::Elsewhere);
        assert_eq!(home(ClusterName::Unnamed, Some(other)), Home::Unknown);
        assert_eq!(home(ClusterName::Unreadable, Some(other)), Home::Here);
    }
}

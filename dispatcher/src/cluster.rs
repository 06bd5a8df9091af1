//! Which MongoDB cluster this worker is at.
//!
//! A command names its cluster by the UUID that the server gave the collection of positions in the state database. Here it is
//! asked for, and asked for again when a command names another: the collection may have been made anew.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use document_outbox::internal::error_codes;
use mongodb::{
    Database,
    bson::{Uuid, doc},
    error::Error,
};
use tokio::time::Instant;

const POSITIONS: &str = "positions";
const UNAUTHORISED: i32 = 13;
/// It is not asked for again before.
const PAUSE: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Cluster {
    state: Database,
    known: Mutex<Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    cluster: Is,
    asked: Option<Instant>,
}

/// What MongoDB says of the collection of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    Called(Uuid),
    /// There is no such collection: no rescuer of this cluster ever wrote a position.
    Unnamed,
    /// This user may not ask.
    Unreadable,
}

/// Where a command belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Belongs {
    Here,
    Elsewhere,
    /// This cluster has no name. If the document isn't here, the command belongs elsewhere.
    Perhaps,
}

impl Cluster {
    pub(crate) fn new(state: Database) -> Self {
        let known = Known { cluster: Is::Unreadable, asked: None };
        Self { state, known: Mutex::new(known) }
    }

    /// Asks MongoDB, unless it was asked a moment ago.
    ///
    /// # Errors
    /// That it could not be asked; what was known before stays.
    pub(crate) async fn ask(&self) -> Result<(), Error> {
        if self.known().asked.is_some_and(|asked| asked.elapsed() < PAUSE) {
            return Ok(());
        }
        let cluster = self.read().await?;
        let known = Known { cluster, asked: Some(Instant::now()) };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(())
    }

    /// Where a command belongs that names this cluster, or none.
    pub(crate) async fn belongs(&self, named: Option<Uuid>) -> Belongs {
        let first = belongs(self.known().cluster, named);
        if first == Belongs::Here {
            return first;
        }
        // Without an answer, what was known before counts.
        let _ = self.ask().await;
        belongs(self.known().cluster, named)
    }

    fn known(&self) -> Known {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self) -> Result<Is, Error> {
        let listed = self.state.list_collections().filter(doc! { "name": POSITIONS }).await;
        let mut listed = match listed {
            Err(error) if error_codes::code(&error) == Some(UNAUTHORISED) => return Ok(Is::Unreadable),
            listed => listed?,
        };
        if !listed.advance().await? {
            return Ok(Is::Unnamed);
        }
        let uuid = listed.deserialize_current()?.info.uuid;
        let uuid = uuid.and_then(|uuid| uuid.to_uuid().ok());
        Ok(uuid.map_or(Is::Unreadable, Is::Called))
    }
}

fn belongs(here: Is, named: Option<Uuid>) -> Belongs {
    match (here, named) {
        (_, None) | (Is::Unreadable, _) => Belongs::Here,
        (Is::Called(here), Some(named)) if here == named => Belongs::Here,
        (Is::Called(_), Some(_)) => Belongs::Elsewhere,
        (Is::Unnamed, Some(_)) => Belongs::Perhaps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_known_to_differ_is_elsewhere() {
        let [one, other] = [1, 2].map(|byte| Uuid::from_bytes([byte; 16]));
        for here in [Is::Called(one), Is::Unnamed, Is::Unreadable] {
            assert_eq!(belongs(here, None), Belongs::Here);
        }
        assert_eq!(belongs(Is::Called(one), Some(one)), Belongs::Here);
        assert_eq!(belongs(Is::Called(one), Some(other)), Belongs::Elsewhere);
        assert_eq!(belongs(Is::Unnamed, Some(other)), Belongs::Perhaps);
        assert_eq!(belongs(Is::Unreadable, Some(other)), Belongs::Here);
    }
}

//! Sessions whose transaction numbers this library assigns.
//!
//! A retryable write is identified by a session and a number in it. The driver counts the numbers of its own
//! writes and provides none for our commands, so batches count their own, in sessions that only they use.
//!
//! # Invariants
//! - No such session goes back to the driver's pool: another's number in the same session would be answered with "done"
//!   for writes that were never made. They count from 2^40, beyond any number that the driver has used in them.
//! - No such session keeps `Client::shutdown` waiting, which waits for every session that a caller holds.
//!
//! Both hold because the session is created on a runtime that has ended by the time it is used. The driver
//! keeps a task on the runtime that created a session: `shutdown` waits for that task, and the task returns a
//! dropped session to the pool. That task ends with the runtime. The server expires the session by itself,
//! half an hour after its last use.

use mongodb::{Client, ClientSession, error::Error, options::SessionOptions};
use parking_lot::{Mutex, MutexGuard};

/// Beyond any number that the driver reaches in its own sessions.
const FIRST_NUMBER: i64 = 1 << 40;

/// The sessions that no batch uses now.
pub(crate) struct Sessions {
    client: Client,
    idle: Mutex<Vec<Session>>,
}

/// A session, and the number of the last write in it.
pub(crate) struct Session {
    pub(crate) session: ClientSession,
    pub(crate) number: i64,
}

impl Sessions {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, idle: Mutex::default() }
    }

    /// A session with the number of its next write.
    pub(crate) async fn take(&self) -> Result<Session, Error> {
        let idle = self.idle().pop();
        let mut session = match idle {
            Some(session) => session,
            None => Session { session: start(self.client.clone()).await?, number: FIRST_NUMBER },
        };
        session.number += 1;
        Ok(session)
    }

    /// Keeps a session for the next batch.
    pub(crate) fn put_back(&self, session: Session) {
        self.idle().push(session);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock()
    }
}

/// Starts a session that belongs only to its holder, see the invariants. Sends no command.
async fn start(client: Client) -> Result<ClientSession, Error> {
    let started = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let options = SessionOptions::builder().causal_consistency(false).build();
        runtime.block_on(async { client.start_session().with_options(options).await })
    });
    match started.await {
        Ok(session) => session,
        Err(ended) => Err(Error::from(std::io::Error::other(ended))),
    }
}

//! Manages sessions whose transaction numbers are assigned by this library.
//!
//! A retryable write is identified by a session and a transaction number in that session. The driver assigns numbers to
//! its own writes and offers none for our commands, so batches assign their own numbers, in sessions that only batches
//! use.
//!
//! # Invariants
//! - A session of a batch never returns to the driver's pool. If the driver used a number in such a session that a
//!   batch had already used, the server would report writes as done that were never made. As a further safeguard,
//!   batches count from 2^40, beyond any number that the driver has used in the session.
//! - `Client::shutdown` waits for every session that a caller holds, but never for a session of a batch.
//!
//! Both invariants hold because a session of a batch is created on a separate runtime that has already ended when the
//! session is used. On the runtime that created a session, the driver keeps a task that returns the dropped session to
//! the pool, and `shutdown` waits for this task. The task of a batch's session has ended together with its runtime.
//! The server expires the session half an hour after its last use.

use mongodb::{Client, ClientSession, error::Error, options::SessionOptions};
use parking_lot::{Mutex, MutexGuard};

/// The first transaction number of a batch, which is beyond any number that the driver reaches in its own sessions.
const FIRST_NUMBER: i64 = 1 << 40;

/// The sessions that no batch is using.
pub(crate) struct Sessions {
    client: Client,
    idle: Mutex<Vec<Session>>,
}

/// A session, and the number of the last write in the session.
pub(crate) struct Session {
    pub(crate) session: ClientSession,
    pub(crate) number: i64,
}

impl Sessions {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, idle: Mutex::default() }
    }

    /// Takes a session and assigns the number of its next write.
    pub(crate) async fn take(&self) -> Result<Session, Error> {
        let idle = self.idle().pop();
        let mut session = match idle {
            Some(session) => session,
            None => Session { session: start(self.client.clone()).await?, number: FIRST_NUMBER },
        };
        session.number += 1;
        Ok(session)
    }

    /// Returns a session so that the next batch can use it.
    pub(crate) fn put_back(&self, session: Session) {
        self.idle().push(session);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock()
    }
}

/// Starts a session that only its holder uses, see the invariants of this module. Sends no command.
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

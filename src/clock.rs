//! Server time: the one clock that all dates in entries are on.
//!
//! Processes whose clocks disagree would steal each other's claims. So every date in an entry, and every comparison
//! with one, is the time of the MongoDB server: the `localTime` of a `hello`, carried on by this machine's
//! monotonic clock and renewed now and then.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mongodb::{
    Client,
    bson::{DateTime, doc},
};

/// After this long a reading is renewed, in the background.
const RENEW_AFTER: Duration = Duration::from_secs(30);

/// A reading with a longer round trip (the first one connects) is taken again, at most this often.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
const TRIES: usize = 3;

/// The server's time, at the cost of a local clock. Clones share one reading.
#[derive(Clone)]
pub struct ServerClock {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    reading: Mutex<Option<Reading>>,
}

#[derive(Clone, Copy)]
struct Reading {
    server: DateTime,
    taken: Instant,
    renewing: bool,
}

impl ServerClock {
    /// A clock that asks the server on first use.
    pub fn new(client: Client) -> Self {
        Self { shared: Arc::new(Shared { client, reading: Mutex::new(None) }) }
    }

    /// The server's time now, to within half a round trip.
    ///
    /// # Errors
    /// Only before the first reading, when the server cannot be asked.
    pub async fn now(&self) -> Result<DateTime, mongodb::error::Error> {
        match self.carried_on() {
            Some(now) => Ok(now),
            None => {
                self.shared.renew().await?;
                Ok(self.carried_on().unwrap_or_else(DateTime::now))
            }
        }
    }

    /// The last reading carried on to now; starts a renewal when it is old.
    pub(crate) fn carried_on(&self) -> Option<DateTime> {
        let mut guard = self.shared.lock();
        let reading = guard.as_mut()?;
        let age = reading.taken.elapsed();
        if age > RENEW_AFTER && !reading.renewing {
            reading.renewing = true;
            let shared = self.shared.clone();
            tokio::spawn(async move {
                if let Err(error) = shared.renew().await {
                    tracing::debug!(%error, "server time was not renewed; the last reading is carried on");
                    shared.lock().iter_mut().for_each(|reading| reading.renewing = false);
                }
            });
        }
        Some(later(reading.server, age))
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the server, again where the answer took its time: the error is up to half the round trip.
    async fn renew(&self) -> Result<(), mongodb::error::Error> {
        let mut best: Option<(Duration, Reading)> = None;
        for _ in 0..TRIES {
            let asked = Instant::now();
            let reply = self.client.database("admin").run_command(doc! { "hello": 1 }).await?;
            let round_trip = asked.elapsed();
            let server = match reply.get_datetime("localTime") {
                Ok(time) => later(*time, round_trip / 2),
                Err(error) => {
                    return Err(mongodb::error::Error::custom(format!("the reply to `hello`: {error}")));
                }
            };
            if best.is_none_or(|(shortest, _)| round_trip < shortest) {
                best = Some((round_trip, Reading { server, taken: asked + round_trip, renewing: false }));
            }
            if round_trip < GOOD_ENOUGH {
                break;
            }
        }
        *self.lock() = best.map(|(_, reading)| reading);
        Ok(())
    }
}

/// A date that much later.
pub fn later(date: DateTime, by: Duration) -> DateTime {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    DateTime::from_millis(date.timestamp_millis().saturating_add(by))
}

/// How long until a date; zero once it has passed.
pub fn until(now: DateTime, date: DateTime) -> Duration {
    let millis = date.timestamp_millis().saturating_sub(now.timestamp_millis());
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

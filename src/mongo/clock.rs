//! The server's time, the only clock for dates in entries.
//!
//! Processes whose clocks disagree would take over each other's claims. So every date in an entry, and
//! every comparison with such a date, uses the time of the MongoDB server. The server's time is the
//! `localTime` in the reply to a `hello`, extrapolated with this machine's monotonic clock and renewed from
//! time to time.
//!
//! # A machine that was suspended
//! The monotonic clock stops while a machine is suspended, so a time extrapolated from it would be late by the length
//! of the suspension: expired claims would seem valid, and new claims would already be expired. The wall clock reveals
//! the suspension. If the two clocks diverge, the last reading of the server's time is invalid, and the server is asked
//! again before any caller gets a time.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mongodb::{
    Client,
    bson::{DateTime, doc},
};
use parking_lot::{Mutex, MutexGuard};

#[cfg(feature = "testing")]
use crate::mongo::in_memory::time::ManualTime;

/// The age at which a reading is renewed in the background.
const RENEW_AFTER: Duration = Duration::from_secs(30);

/// A reading whose round trip took longer than this is taken again. For example, the first reading includes connecting.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
const TRIES: usize = 3;

/// Time limit of a renewal, after which the next caller starts another renewal. If the server can't be reached, the
/// driver gives up earlier, with a more precise error.
const RENEW_WITHIN: Duration = Duration::from_secs(35);

/// A reading is invalid if wall clock and monotonic clock have diverged by more than this since the reading. A slewed
/// clock stays far below this limit: it diverges by at most 15 ms before a reading is renewed.
const CLOCKS_MAY_PART: Duration = Duration::from_millis(200);

/// Provides the server's time at the cost of reading a local clock. Clones share one reading.
#[derive(Clone)]
pub struct ServerClock {
    shared: Arc<SharedReading>,
}

impl fmt::Debug for ServerClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerClock").finish_non_exhaustive()
    }
}

struct SharedReading {
    client: Client,
    reading: Mutex<Option<Reading>>,
    /// The time of an in-memory database, in place of a server's time.
    #[cfg(feature = "testing")]
    by_hand: Option<ManualTime>,
}

#[derive(Clone, Copy)]
struct Reading {
    server: DateTime,
    taken: Moment,
    renewing: bool,
}

/// One moment, as shown by this machine's monotonic clock and by its wall clock.
#[derive(Clone, Copy)]
struct Moment {
    /// This clock stops while the machine is suspended.
    monotonic: Instant,
    /// This clock can be set by hand or by NTP.
    wall: SystemTime,
}

impl ServerClock {
    /// Creates a clock that asks the server when it is first used.
    pub fn new(client: Client) -> Self {
        let shared = SharedReading {
            client,
            reading: Mutex::new(None),
            #[cfg(feature = "testing")]
            by_hand: None,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Creates a clock that shows the time of an in-memory database.
    #[cfg(feature = "testing")]
    pub(crate) fn by_hand(client: Client, time: ManualTime) -> Self {
        let shared = SharedReading { client, reading: Mutex::new(None), by_hand: Some(time) };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the server's time, accurate to half a round trip.
    ///
    /// # Errors
    /// An error if the server must be asked and can't be reached. The server must be asked for the first reading, and
    /// after this machine was suspended or its clock was set.
    pub async fn now(&self) -> Result<DateTime, mongodb::error::Error> {
        if let Some(now) = self.carried_on() {
            return Ok(now);
        }

        self.shared.renew().await?;
        Ok(self.carried_on().unwrap_or_else(DateTime::now))
    }

    /// Returns the last reading extrapolated to now, and starts a renewal if the reading is old. Returns `None` if
    /// there is no valid reading.
    pub(crate) fn carried_on(&self) -> Option<DateTime> {
        #[cfg(feature = "testing")]
        if let Some(time) = &self.shared.by_hand {
            return Some(time.now());
        }

        let mut guard = self.shared.lock();
        let reading = guard.as_mut()?;
        let age = reading.taken.age(Moment::now())?;

        if age > RENEW_AFTER && !reading.renewing {
            self.shared.renew_in_background(reading);
        }
        Some(later(reading.server, age))
    }
}

impl Moment {
    fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns the time since this moment, or `None` if the monotonic clock and the wall clock disagree about that
    /// time.
    fn age(self, now: Self) -> Option<Duration> {
        let age = now.monotonic.duration_since(self.monotonic);
        let by_the_wall = now.wall.duration_since(self.wall).ok()?;
        if by_the_wall.abs_diff(age) > CLOCKS_MAY_PART { None } else { Some(age) }
    }
}

impl SharedReading {
    fn lock(&self) -> MutexGuard<'_, Option<Reading>> {
        self.reading.lock()
    }

    /// Renews the reading in a task of the caller's runtime. If that task ends, the next caller can start another
    /// renewal.
    fn renew_in_background(self: &Arc<Self>, reading: &mut Reading) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        reading.renewing = true;
        let renewing = Renewing { shared: self.clone() };
        runtime.spawn(async move {
            if let Err(error) = renewing.shared.renew().await {
                tracing::debug!(
                    error = error.to_string(),
                    "the server's time could not be renewed; still extrapolating from the last reading"
                );
            }
        });
    }

    /// Asks the server, and asks again if the answer was slow, because the time is inaccurate by up to half the round
    /// trip.
    async fn renew(&self) -> Result<(), mongodb::error::Error> {
        match tokio::time::timeout(RENEW_WITHIN, self.ask()).await {
            Ok(asked) => {
                *self.lock() = asked?;
                Ok(())
            }
            Err(_elapsed) => Err(unanswered(&format!(
                "MongoDB did not report its time within {} s",
                RENEW_WITHIN.as_secs()
            ))),
        }
    }

    async fn ask(&self) -> Result<Option<Reading>, mongodb::error::Error> {
        let mut best: Option<(Duration, Reading)> = None;
        for _ in 0..TRIES {
            let asked = Moment::now();
            let reply = self.client.database("admin").run_command(doc! { "hello": 1 }).await?;
            let taken = Moment::now();
            let round_trip = taken.monotonic.duration_since(asked.monotonic);
            let server = match reply.get_datetime("localTime") {
                Ok(time) => later(*time, round_trip / 2),
                Err(error) => {
                    return Err(unanswered(&format!("the reply to `hello`: {error}")));
                }
            };

            if best.is_none_or(|(shortest, _)| round_trip < shortest) {
                best = Some((round_trip, Reading { server, taken, renewing: false }));
            }
            if round_trip < GOOD_ENOUGH {
                break;
            }
        }
        Ok(best.map(|(_, reading)| reading))
    }
}

/// A renewal in progress. The renewal counts as ended when this value is dropped.
struct Renewing {
    shared: Arc<SharedReading>,
}

impl Drop for Renewing {
    fn drop(&mut self) {
        if let Some(reading) = self.shared.lock().as_mut() {
            reading.renewing = false;
        }
    }
}

fn unanswered(why: &str) -> mongodb::error::Error {
    std::io::Error::other(why).into()
}

/// Returns the date that is later than `date` by this duration.
pub fn later(date: DateTime, by: Duration) -> DateTime {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    DateTime::from_millis(date.timestamp_millis().saturating_add(by))
}

/// Returns the time until a date, or zero if the date has passed.
pub fn until(now: DateTime, date: DateTime) -> Duration {
    let millis = date.timestamp_millis().saturating_sub(now.timestamp_millis());
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: &str = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1";

    /// Creates a server clock whose server can't be reached. Its last reading was taken `monotonic` ago by this
    /// machine's monotonic clock, and `wall` ago by its wall clock.
    async fn clock(monotonic: Duration, wall: Duration) -> ServerClock {
        let clock = ServerClock::new(Client::with_uri_str(NOBODY).await.unwrap());
        let now = Moment::now();
        let taken = Moment { monotonic: now.monotonic - monotonic, wall: now.wall - wall };
        let server = DateTime::from_millis(1_000_000);
        *clock.shared.lock() = Some(Reading { server, taken, renewing: false });
        clock
    }

    #[tokio::test]
    async fn a_reading_is_carried_on_while_the_clocks_agree() {
        let ten = Duration::from_secs(10);
        let clock = clock(ten, ten + CLOCKS_MAY_PART / 2).await;
        assert!(clock.now().await.unwrap() >= DateTime::from_millis(1_010_000));
    }

    #[tokio::test]
    async fn after_a_suspension_the_server_is_asked_again() {
        let asleep = clock(Duration::from_secs(1), Duration::from_secs(61)).await;
        assert_eq!(asleep.carried_on(), None, "the time from before the suspension must not be used");
        assert!(asleep.now().await.is_err(), "the server has to be asked and is unreachable");

        let set_back = clock(Duration::from_secs(61), Duration::from_secs(1)).await;
        assert!(set_back.now().await.is_err());
    }

    #[test]
    fn a_renewal_cut_off_by_its_runtime_is_repeated() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let old = RENEW_AFTER * 2;

        let first = runtime();
        let clock = first.block_on(async {
            let clock = clock(old, old).await;
            assert!(clock.carried_on().is_some());
            assert!(clock.shared.lock().unwrap().renewing);
            clock
        });
        drop(first);
        assert!(!clock.shared.lock().unwrap().renewing);

        runtime().block_on(async {
            clock.carried_on().unwrap();
            assert!(clock.shared.lock().unwrap().renewing);
        });
    }
}

//! A token bucket on the runtime's clock: tokens are evenly spaced, and a few may accumulate.
//!
//! The rescuer's sweeps take one token for each query; a dispatcher with a rate takes one for each
//! message.

use std::{fmt, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

/// Issues one token per interval, in the order in which tasks ask.
pub struct TokenBucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Duration>>,
    clock: RuntimeClock,
    /// The lock that the first waiting task holds. The other waiting tasks wait for this lock, in the order
    /// in which they asked.
    line: Mutex<()>,
    shortest_wait: Duration,
}

/// The runtime's clock, which the bucket also uses to sleep.
#[derive(Debug, Clone)]
struct RuntimeClock {
    start: Instant,
}

impl Clock for RuntimeClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl TokenBucket {
    /// A bucket with one token per interval. At most `saved_up` tokens accumulate while no task takes
    /// them; 1 allows no burst.
    #[must_use]
    pub fn new(interval: Duration, saved_up: NonZeroU32) -> Self {
        let clock = RuntimeClock { start: Instant::now() };
        // An interval of zero sets no limit.
        let quota = Quota::with_period(interval).unwrap_or(Quota::per_second(NonZeroU32::MAX));

        Self {
            limiter: RateLimiter::direct_with_clock(quota.allow_burst(saved_up), clock.clone()),
            clock,
            line: Mutex::default(),
            shortest_wait: Duration::ZERO,
        }
    }

    /// Makes each task that has to wait for a token wait at least this long. The tasks behind that task then
    /// find the tokens that have accumulated.
    #[must_use]
    pub fn waiting_at_least(mut self, shortest_wait: Duration) -> Self {
        self.shortest_wait = shortest_wait;
        self
    }

    /// Waits for a token. This method is cancel safe: a task that stops waiting takes no token.
    pub async fn take(&self) {
        let _next = self.line.lock().await;
        while let Err(early) = self.limiter.check() {
            sleep(early.wait_time_from(self.clock.now()).max(self.shortest_wait)).await;
        }
    }

    /// Takes a token if there is one.
    #[must_use]
    pub fn try_take(&self) -> bool {
        self.limiter.check().is_ok()
    }
}

impl fmt::Debug for TokenBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenBucket").field("clock", &self.clock).finish_non_exhaustive()
    }
}

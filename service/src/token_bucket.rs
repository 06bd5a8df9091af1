//! A token bucket for the runtime's clock: evenly spaced tokens, of which a few may be saved up.
//!
//! The rescuer's sweeps take one for each query, a dispatcher with a rate takes one for each message.

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

/// Gives out one token in each interval, in the order in which tasks ask.
pub struct TokenBucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Duration>>,
    clock: RuntimeClock,
    /// The task that holds it is next.
    line: Mutex<()>,
    shortest_wait: Duration,
}

/// The runtime's clock, by which it also sleeps.
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
    /// A token in each interval. At most `saved_up` tokens are kept while no task takes them: 1 allows no burst.
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

    /// A task that has to wait waits at least this long; those behind it find the tokens that were saved up meanwhile.
    #[must_use]
    pub fn waiting_at_least(mut self, shortest_wait: Duration) -> Self {
        self.shortest_wait = shortest_wait;
        self
    }

    /// Waits for a token. Cancel safe: a task that stops waiting takes no token.
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

//! The rate of deliveries, and the limiter that enforces the rate.
//!
//! Consumers must not receive a backlog of hours within a minute. The limiter counts messages, and the worker
//! asks it before claiming them: messages that wait for their turn are not claimed, so no claim expires
//! meanwhile. If the rate is low, the limiter admits one message at a time, so that a stall of MongoDB or the
//! broker can't accumulate many messages that are then sent at once.

use std::{
    fmt,
    num::NonZeroU32,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::dispatch::Pace;
use outbox_service::TokenBucket;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics;

const MOST: u32 = 1_000_000;
/// The minimum wait of a task that has to wait. The tasks that wait behind it use the permits that accumulate
/// meanwhile, so all these tasks continue together and share their commands to MongoDB. This wait is half of
/// the time in which the maximum number of permits accumulates, because a sleep may end late.
const TICK: Duration = Duration::from_millis(10);
/// The number of permits that may accumulate is the rate per second divided by this number.
const SAVED_UP: u32 = 50;
/// The number of messages that may be in flight is the rate per second divided by this number.
const ON_THEIR_WAY: usize = 20;
/// At least this many documents may be processed at a time, however low the rate is, so that a slow
/// document does not block all others.
const FEWEST_DOCUMENTS: usize = 32;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A number of messages per second, written as `500/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(NonZeroU32);

/// The text is not a rate. The error's text begins with a verb and describes the correct form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a rate; write messages per second as in 500/s, from 1/s to {MOST}/s")]
pub struct InvalidRate;

impl Rate {
    /// A rate of `messages` per second.
    ///
    /// # Errors
    /// Returns an error if `messages` is zero or more than a million.
    pub fn per_second(messages: u32) -> Result<Self, InvalidRate> {
        match NonZeroU32::new(messages) {
            Some(rate) if messages <= MOST => Ok(Self(rate)),
            _ => Err(InvalidRate),
        }
    }

    /// The number of messages per second.
    pub(crate) fn messages(self) -> u32 {
        self.0.get()
    }

    /// The maximum number of documents processed at a time. It is limited because messages that are in
    /// flight while MongoDB or the broker stalls are sent at once afterwards.
    pub(crate) fn documents_at_a_time(self) -> usize {
        self.messages_on_their_way().max(FEWEST_DOCUMENTS)
    }

    fn messages_on_their_way(self) -> usize {
        self.0.get() as usize / ON_THEIR_WAY
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let number = text.strip_suffix("/s").ok_or(InvalidRate)?;
        Self::per_second(number.parse().map_err(|_| InvalidRate)?)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// Admits messages in the order of the requests.
///
/// In any second, the limiter admits at most the sum of three numbers of messages: those that the rate allows
/// in a second, those whose permits may accumulate (as many as the rate allows in 20 ms), and those that may
/// be in flight (as many as the rate allows in 50 ms, or one for each document in processing, whichever is
/// more).
pub(crate) struct Limiter {
    bucket: TokenBucket,
    most_at_once: usize,
    stop: CancellationToken,
    throttled: Throttled,
}

impl Limiter {
    /// Creates a limiter for `concurrency` concurrent requests. Once `stop` is cancelled, it admits no
    /// message.
    pub(crate) fn new(rate: Rate, concurrency: usize, stop: CancellationToken) -> Self {
        let saved_up = NonZeroU32::new(rate.messages() / SAVED_UP).unwrap_or(NonZeroU32::MIN);
        let interval = Duration::from_secs(1) / rate.messages();

        Self {
            bucket: TokenBucket::new(interval, saved_up).waiting_at_least(TICK),
            most_at_once: (rate.messages_on_their_way() / concurrency.max(1)).max(1),
            stop,
            throttled: Throttled::default(),
        }
    }

    /// The total time that deliveries have waited.
    pub(crate) fn throttled(&self) -> Duration {
        Duration::from_nanos(self.throttled.nanos.load(Ordering::Relaxed))
    }
}

#[async_trait]
impl Pace for Limiter {
    async fn permits(&self, wanted: usize) -> usize {
        let asked = Instant::now();
        let stopped = tokio::select! {
            biased;
            () = self.stop.cancelled() => true,
            () = self.bucket.take() => false,
        };
        self.throttled.add(asked.elapsed());
        if stopped {
            return 0;
        }

        // The request waits only for the permit of its first message. It gets more permits only if they are
        // available at once.
        let most = wanted.min(self.most_at_once);
        let mut given = 1;
        while given < most && self.bucket.try_take() {
            given += 1;
        }
        given
    }
}

/// Sums durations in whole seconds, because counters are whole numbers.
#[derive(Default)]
struct Throttled {
    nanos: AtomicU64,
}

impl Throttled {
    fn add(&self, waited: Duration) {
        let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        let before = self.nanos.fetch_add(waited, Ordering::Relaxed);

        let seconds = before.wrapping_add(waited) / NANOS_PER_SECOND - before / NANOS_PER_SECOND;
        metrics::throttled(seconds);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn limiter(rate: u32, concurrency: usize) -> Arc<Limiter> {
        let rate = Rate::per_second(rate).unwrap();
        Arc::new(Limiter::new(rate, concurrency, CancellationToken::new()))
    }

    #[test]
    fn a_rate_is_messages_per_second() {
        assert_eq!("500/s".parse::<Rate>().map(|rate| rate.to_string()), Ok("500/s".into()));
        for text in ["500", "0/s", "-1/s", "1.5/s", "500/m", "1000001/s", "/s", ""] {
            assert_eq!(text.parse::<Rate>(), Err(InvalidRate), "{text}");
        }
    }

    /// The number of messages admitted in each of 100 overlapping windows of one second, under constant demand.
    async fn given_in_each_second(limiter: Arc<Limiter>, concurrency: usize) -> Vec<usize> {
        let start = Instant::now();
        let ask = |limiter: Arc<Limiter>| async move {
            let mut given = Vec::new();
            while start.elapsed() < Duration::from_secs(10) {
                let permits = limiter.permits(100).await;
                given.resize(given.len() + permits, start.elapsed());
            }
            given
        };
        let tasks: Vec<_> = (0..concurrency).map(|_| tokio::spawn(ask(limiter.clone()))).collect();
        let mut given = Vec::new();
        for task in tasks {
            given.extend(task.await.unwrap());
        }
        let within = |from: Duration| {
            given.iter().filter(|at| (from..from + Duration::from_secs(1)).contains(*at)).count()
        };
        (0..90).map(|tenth| within(Duration::from_millis(tenth * 100))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_exceeds_the_rate_by_much() {
        for (rate, concurrency) in [(7, 32), (500, 32), (1_500, 1), (5_000, 32)] {
            let seconds = given_in_each_second(limiter(rate, concurrency), concurrency).await;
            let (least, most) = (rate as usize * 95 / 100, rate as usize * 105 / 100 + 1);
            assert!(seconds.iter().all(|given| (least..=most).contains(given)), "{rate}: {seconds:?}");
        }
    }

    /// Waiting messages are admitted in groups. A group has the number of messages that the rate allows in 10 ms.
    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_let_through_together() {
        let limiter = limiter(500, 32);
        let ask = |limiter: Arc<Limiter>| async move {
            limiter.permits(1).await;
            Instant::now()
        };
        let tasks: Vec<_> = (0..110).map(|_| tokio::spawn(ask(limiter.clone()))).collect();
        let mut times = Vec::new();
        for task in tasks {
            times.push(task.await.unwrap());
        }
        times.dedup();
        assert!((15..=25).contains(&times.len()), "{} moments for 100 messages", times.len());
    }

    /// However long the limiter was idle, for example during an outage of the broker, only few permits
    /// accumulate.
    #[tokio::test(start_paused = true)]
    async fn little_can_be_saved_up() {
        let limiter = limiter(500, 4);
        tokio::time::advance(Duration::from_hours(1)).await;
        let mut at_once = 0;
        let now = Instant::now();
        loop {
            let given = limiter.permits(100).await;
            if !now.elapsed().is_zero() {
                break;
            }
            at_once += given;
        }
        assert_eq!(at_once, 500 / 50);
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_is_given_after_a_stop() {
        let stop = CancellationToken::new();
        let limiter = Limiter::new(Rate::per_second(1).unwrap(), 1, stop.clone());
        assert_eq!(limiter.permits(1).await, 1);
        let (given, ()) = tokio::join!(limiter.permits(1), async { stop.cancel() });
        assert_eq!(given, 0);
        assert_eq!(limiter.permits(1).await, 0);
    }
}

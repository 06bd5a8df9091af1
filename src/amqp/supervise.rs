//! The loop that publishers and consumers share: connect, serve, pause, connect again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::amqp::{
    connection::Link,
    state::{Board, State},
    trouble::Trouble,
};

/// Why a connection is no longer served.
pub(super) enum End {
    /// The owner asked the loop to end.
    Asked,
    Lost(Trouble),
}

impl End {
    pub(super) fn lost(reason: impl Into<String>) -> Self {
        Self::Lost(Trouble::Unreachable(reason.into()))
    }
}

/// A task that works over a series of connections.
pub(super) trait Supervised {
    /// The place where the state is posted.
    fn board(&self) -> &Board;

    /// The pauses between connections.
    fn pauses(&self) -> Pauses;

    /// Opens a connection that is ready to be served.
    fn open(&self) -> impl Future<Output = Result<Link, Trouble>> + Send + 'static;

    /// Serves one connection until it is lost or not needed any more.
    async fn serve(&mut self, link: &mut Link) -> End;

    /// Runs `work` while there is no connection to serve. Returns `None` if the task is asked to end before `work` is
    /// done.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T>;

    /// Handles the loss of a connection.
    fn lost(&mut self, trouble: Trouble);

    /// Finishes the remaining work if the loop was asked to end while the connection is still open.
    async fn finish(&mut self);

    /// Called when the loop has ended.
    fn ended(&mut self);
}

/// Runs the loop until the task is asked to end.
pub(super) async fn supervise(mut supervised: impl Supervised) {
    let mut pauses = supervised.pauses();

    loop {
        let opening = supervised.open();
        let Some(opened) = supervised.meanwhile(opening).await else {
            break;
        };

        let lived = match opened {
            Ok(mut link) => {
                let since = Instant::now();
                match supervised.serve(&mut link).await {
                    End::Asked => {
                        supervised.finish().await;
                        link.close().await;
                        break;
                    }
                    End::Lost(trouble) => supervised.lost(trouble),
                }
                if supervised.meanwhile(link.close()).await.is_none() {
                    break;
                }
                since.elapsed()
            }
            Err(trouble) => {
                supervised.board().post(trouble.into());
                Duration::ZERO
            }
        };

        if supervised.meanwhile(sleep(pauses.after(lived))).await.is_none() {
            break;
        }
    }

    supervised.board().post(State::Closed);
    supervised.ended();
}

/// Calculates the pauses between connections. The pauses double, have jitter, and become short again after a
/// connection that lasted.
pub(super) struct Pauses {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Pauses {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        let min = min.max(Duration::from_millis(1));
        let max = max.max(min);
        Self { min, max, next: min }
    }

    /// The pause before the next connection, after a connection that lasted `lived`. The pause is chosen at random
    /// between half the step and the full step, so that many processes do not reconnect at the same time.
    pub(super) fn after(&mut self, lived: Duration) -> Duration {
        // Judge a connection by its lifetime. Otherwise, if each connection were refused at its first use, the loop
        // would reconnect endlessly without a pause.
        if lived >= self.max {
            self.next = self.min;
        }
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_a_connection_lasts() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut pauses = Pauses::new(min, max);
        let mut step = min;
        for _ in 0..10 {
            let pause = pauses.after(Duration::from_millis(3));
            assert!(pause >= step / 2 && pause <= step, "{pause:?} for {step:?}");
            step = (step * 2).min(max);
        }
        assert!(pauses.after(max) <= min);
    }
}

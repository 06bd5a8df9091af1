//! The loop that a publisher and a consumer share: connect, serve, pause, connect again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::amqp::{
    connection::Link,
    state::{Board, State},
    trouble::Trouble,
};

/// Why a connection is no longer served.
pub(super) enum End {
    /// Somebody asked for it.
    Asked,
    Lost(Trouble),
}

impl End {
    pub(super) fn lost(reason: impl Into<String>) -> Self {
        Self::Lost(Trouble::Unreachable(reason.into()))
    }
}

/// The work over one connection after another.
pub(super) trait Supervised {
    /// Where its state is posted.
    fn board(&self) -> &Board;

    /// The pauses between its connections.
    fn pauses(&self) -> Pauses;

    /// A fresh connection, ready to be served.
    fn open(&self) -> impl Future<Output = Result<Link, Trouble>> + Send + 'static;

    /// Serves one connection until it is lost or not needed any more.
    async fn serve(&mut self, link: &mut Link) -> End;

    /// Runs `work` while there is no connection to serve; `None` if asked to end before it is done.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T>;

    /// The connection is lost.
    fn lost(&mut self, trouble: Trouble);

    /// Asked to end, with the connection still open.
    async fn finish(&mut self);

    /// The loop has ended.
    fn ended(&mut self);
}

/// Runs until it is asked to end.
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

/// Pauses between connections: doubling, jittered, and short again after a connection that lasted.
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

    /// The pause before the next connection, after one that lasted `lived`. It is chosen at random between half
    /// the step and the full step, so that many processes do not reconnect at the same time.
    pub(super) fn after(&mut self, lived: Duration) -> Duration {
        // This is judged by its lifetime: otherwise a connection that is refused at its first use each time
        // would be made again without end and without pause.
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

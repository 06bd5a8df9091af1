//! At most so many queries a second, evenly, without bursts.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

#[derive(Debug)]
pub(crate) struct Budget {
    interval: Duration,
    next: Instant,
}

impl Budget {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), next: Instant::now() }
    }

    /// Waits for the next query's turn.
    pub(crate) async fn turn(&mut self) {
        let now = Instant::now();
        if self.next > now {
            sleep_until(self.next).await;
        }
        self.next = self.next.max(now) + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn queries_are_spread_evenly_and_idle_time_is_not_saved_up() {
        let mut budget = Budget::new(10);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        for _ in 0..31 {
            budget.turn().await;
        }
        assert_eq!(begun.elapsed().as_millis() / 100, 30);
    }
}

//! At most so many queries a second, evenly, without bursts: for all who share the budget.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

#[derive(Debug)]
pub(crate) struct Budget {
    interval: Duration,
    next: Mutex<Instant>,
}

impl Budget {
    pub(crate) fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, next: Mutex::new(Instant::now()) }
    }

    /// Waits for the next query's turn.
    pub(crate) async fn turn(&self) {
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + self.interval;
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn queries_are_spread_evenly_and_idle_time_is_not_saved_up() {
        let budget = Budget::new(10);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        for _ in 0..31 {
            budget.turn().await;
        }
        assert_eq!(begun.elapsed().as_millis() / 100, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_share_it_have_together_what_one_would_have() {
        let budget = Budget::new(10);
        let begun = Instant::now();
        let several = || async {
            for _ in 0..10 {
                budget.turn().await;
            }
        };
        tokio::join!(several(), several(), several());
        assert_eq!(begun.elapsed().as_millis() / 100, 29);
    }
}

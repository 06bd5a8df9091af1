//! At most this many queries a second, evenly, without bursts: for all who share the budget.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::leadership::term::Context;

/// Counting for the metrics takes at most every fifth query.
const COUNTING: u32 = 5;

#[derive(Debug)]
pub(crate) struct Budget {
    all: Pace,
    counting: Pace,
}

#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: Mutex<Instant>,
}

/// What queries are for, and so how they wait for their turn.
pub(crate) enum Turns<'a> {
    /// For the sweep, which says how many it took.
    Sweeping { queries: &'a mut usize },
    /// For the metrics alone.
    Counting,
}

impl Turns<'_> {
    /// Waits for the next query's turn, or until told to stop.
    pub(crate) async fn wait(&mut self, context: &Context) {
        let Context { shared, stop, report, .. } = context;
        match self {
            Self::Sweeping { queries } => {
                **queries += 1;
                stop.run_until_cancelled(shared.budget.turn()).await;
                report.sweep_moved();
            }
            Self::Counting => _ = stop.run_until_cancelled(shared.budget.counting_turn()).await,
        }
    }
}

impl Budget {
    pub(crate) fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { all: Pace::new(interval), counting: Pace::new(interval * COUNTING) }
    }

    /// Waits for the next query's turn.
    pub(crate) async fn turn(&self) {
        self.all.turn().await;
    }

    /// Waits for the turn of the next query that only counts. The sweep must not wait for those.
    pub(crate) async fn counting_turn(&self) {
        self.counting.turn().await;
        self.all.turn().await;
    }
}

impl Pace {
    fn new(interval: Duration) -> Self {
        Self { interval, next: Mutex::new(Instant::now()) }
    }

    async fn turn(&self) {
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

    #[tokio::test(start_paused = true)]
    async fn counting_leaves_four_of_five_turns_to_the_sweep() {
        let budget = Budget::new(10);
        let begun = Instant::now();
        let count = async {
            loop {
                budget.counting_turn().await;
            }
        };
        let sweep = async {
            for _ in 0..80 {
                budget.turn().await;
            }
        };
        tokio::select! {
            () = count => {}
            () = sweep => {}
        }
        let took = begun.elapsed();
        assert!(took <= Duration::from_millis(10_100), "{took:?}");
    }
}

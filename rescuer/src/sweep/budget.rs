//! Limits the number of queries per second that all users of the budget send together. Queries are spaced
//! evenly, without bursts.

use std::{num::NonZeroU32, time::Duration};

use outbox_service::TokenBucket;

use crate::{halt::Run, leadership::term::Term};

/// At most one query out of this many may be used to count for the metrics.
const COUNTING: u32 = 5;

#[derive(Debug)]
pub(crate) struct Budget {
    all: TokenBucket,
    counting: TokenBucket,
}

/// Queries for one purpose. Each query waits for its turn.
pub(crate) struct Turns<'a> {
    term: &'a Term,
    budget: &'a Budget,
    purpose: Purpose,
    taken: usize,
}

#[derive(Debug, Clone, Copy)]
enum Purpose {
    Sweeping,
    /// Counting for the metrics.
    Counting,
}

impl<'a> Turns<'a> {
    pub(crate) fn sweeping(term: &'a Term, budget: &'a Budget) -> Self {
        Self { term, budget, purpose: Purpose::Sweeping, taken: 0 }
    }

    pub(crate) fn counting(term: &'a Term, budget: &'a Budget) -> Self {
        Self { term, budget, purpose: Purpose::Counting, taken: 0 }
    }

    /// The number of turns used so far.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Waits until the next query may be sent.
    pub(crate) async fn wait(&mut self) -> Run<()> {
        self.taken += 1;
        match self.purpose {
            Purpose::Sweeping => {
                self.term.unless_stopped(self.budget.turn()).await?;
                self.term.report.sweep_moved();
                Ok(())
            }
            Purpose::Counting => self.term.unless_stopped(self.budget.counting_turn()).await,
        }
    }
}

impl Budget {
    pub(crate) fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            all: TokenBucket::new(interval, NonZeroU32::MIN),
            counting: TokenBucket::new(interval * COUNTING, NonZeroU32::MIN),
        }
    }

    /// Waits until the next query may be sent.
    pub(crate) async fn turn(&self) {
        self.all.take().await;
    }

    /// Waits until the next query that only counts may be sent. The sweep does not wait for such queries.
    pub(crate) async fn counting_turn(&self) {
        self.counting.take().await;
        self.all.take().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn queries_are_spread_evenly_even_after_idle_time() {
        let budget = Budget::new(10);
        tokio::time::sleep(Duration::from_mins(1)).await;
        let begun = Instant::now();
        for _ in 0..31 {
            budget.turn().await;
        }
        assert_eq!(begun.elapsed().as_millis() / 100, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shared_budget_is_no_larger() {
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

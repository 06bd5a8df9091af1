//! Decides whether this worker takes commands, which depends on whether it can process them.
//!
//! RabbitMQ hands commands to every worker that has room, and a worker that cannot process commands always
//! has room.
//!
//! | this worker | takes |
//! |---|---|
//! | has had no answer from MongoDB yet, or cannot reach MongoDB | nothing |
//! | for a minute, could process none of the commands that it received, because they are from another cluster or because MongoDB denies this user a privilege | only one command a minute, as a test |
//! | otherwise | up to its prefetch |
//!
//! While a worker takes no commands, it is not ready, and other workers get the commands.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

/// After a minute with only useless commands, the worker takes only one command per minute, as a
/// test.
const MINUTE: Duration = Duration::from_mins(1);

/// Why MongoDB counts as unreachable at the start, before its first answer or the first failed request.
const NOT_YET: &str = "it has not answered yet";

const OTHER_CLUSTER: &str = "the commands are from another MongoDB cluster; mongodb_uri, state_database or \
     the RabbitMQ vhost differs from the rescuer's setting";
const REFUSED: &str =
    "MongoDB denies this user a privilege that every command needs; grant the user find and update";

/// Decides whether the worker takes commands; see the module's documentation. All tasks of the
/// worker share one value.
pub(crate) struct Ability {
    observations: Mutex<Observations>,
    changed: Notify,
}

/// The number of commands to take from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    All,
    One,
    Nothing,
}

/// Why this worker could not process a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Useless {
    OtherCluster,
    Refused,
}

/// Whether MongoDB has become reachable or unreachable since the previous check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    News,
    AsBefore,
}

/// The facts that this worker has observed, with their times. The decision depends only on these facts and on
/// the current time.
#[derive(Debug)]
struct Observations {
    /// Why MongoDB cannot be reached; `None` once MongoDB has answered.
    away: Option<String>,
    streak: Option<Streak>,
    /// When to take one command again as a test. `None` unless a streak of useless commands has lasted for a
    /// minute.
    next_try: Option<Instant>,
    /// The time when MongoDB last executed a request for a command.
    worked: Option<Instant>,
}

/// A series of useless commands without a useful one between them.
#[derive(Debug, Clone, Copy)]
struct Streak {
    began: Instant,
    last: Instant,
    why: Useless,
}

impl Observations {
    fn new() -> Self {
        Self { away: Some(NOT_YET.into()), streak: None, next_try: None, worked: None }
    }

    fn useful(&mut self) {
        self.streak = None;
        self.next_try = None;
    }

    fn useless(&mut self, why: Useless, now: Instant) {
        let began = match self.streak {
            // Unless the worker already takes only test commands, a pause of a minute ends a streak: two
            // forged commands an hour apart don't show that all commands are useless to this worker.
            Some(streak) if now - streak.last < MINUTE || self.next_try.is_some() => streak.began,
            _ => now,
        };
        self.streak = Some(Streak { began, last: now, why });
        if now - began >= MINUTE {
            self.next_try = Some(now + MINUTE);
        }
    }

    fn taking(&self, now: Instant) -> Taking {
        if self.away.is_some() {
            return Taking::Nothing;
        }

        match self.next_try {
            None => Taking::All,
            Some(next_try) if now < next_try => Taking::Nothing,
            Some(_) => Taking::One,
        }
    }

    fn why_unable(&self) -> Option<String> {
        if let Some(reason) = &self.away {
            return Some(format!("MongoDB cannot be reached: {reason}"));
        }

        self.next_try?;
        let why = match self.streak?.why {
            Useless::OtherCluster => OTHER_CLUSTER,
            Useless::Refused => REFUSED,
        };
        Some(why.into())
    }
}

impl Ability {
    pub(crate) fn new() -> Self {
        Self { observations: Mutex::new(Observations::new()), changed: Notify::new() }
    }

    /// Records that MongoDB has answered. Returns whether MongoDB was unreachable before.
    pub(crate) fn reached(&self) -> Change {
        if self.lock().away.take().is_none() {
            return Change::AsBefore;
        }

        // Ends the streak, because the commands may have been useless only because MongoDB was
        // unreachable.
        self.lock().useful();
        self.changed.notify_one();
        Change::News
    }

    /// Records that MongoDB cannot be reached. Returns whether this is new: MongoDB was reachable
    /// before, or had not been asked.
    pub(crate) fn away(&self, reason: &str) -> Change {
        let before = self.lock().away.replace(reason.to_owned());
        self.changed.notify_one();
        match before {
            Some(before) if before != NOT_YET => Change::AsBefore,
            _ => Change::News,
        }
    }

    /// Whether MongoDB has executed a request for a command since `then`.
    pub(crate) fn worked_since(&self, then: Instant) -> bool {
        self.lock().worked.is_some_and(|worked| worked >= then)
    }

    /// Records that a command was from this worker's cluster, and that MongoDB allowed processing it.
    pub(crate) fn useful(&self) {
        let mut state = self.lock();
        state.worked = Some(Instant::now());
        if state.streak.is_some() {
            state.useful();
            self.changed.notify_one();
        }
    }

    /// Records that this worker could not process a command.
    pub(crate) fn useless(&self, why: Useless) {
        self.lock().useless(why, Instant::now());
        self.changed.notify_one();
    }

    /// The number of commands to take now, and the time to ask again.
    pub(crate) fn taking(&self) -> (Taking, Option<Instant>) {
        let (state, now) = (self.lock(), Instant::now());
        (state.taking(now), state.next_try.filter(|next_try| *next_try > now))
    }

    /// Why no commands are taken, as a sentence.
    pub(crate) fn why_unable(&self) -> Option<String> {
        self.lock().why_unable()
    }

    /// Wakes the caller of [`changed`](Self::changed).
    pub(crate) fn notify(&self) {
        self.changed.notify_one();
    }

    /// Waits until the decision may have changed. Only one task may wait at a time.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Observations> {
        self.observations.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn reached() -> Observations {
        Observations { away: None, ..Observations::new() }
    }

    #[test]
    fn no_command_is_taken_before_mongodb_answers() {
        let mut state = Observations::new();
        let now = Instant::now();
        assert_eq!(state.taking(now), Taking::Nothing);
        assert!(state.why_unable().unwrap().contains("not answered yet"));
        state.away = None;
        assert_eq!((state.taking(now), state.why_unable()), (Taking::All, None));
    }

    #[test]
    fn useless_commands_alone_leave_one_a_minute() {
        let (mut state, start) = (reached(), Instant::now());
        for second in 0..60 {
            state.useless(Useless::OtherCluster, start + SECOND * second);
            assert_eq!(state.taking(start + SECOND * second), Taking::All, "{second}");
        }
        let mut now = start + MINUTE;
        for _ in 0..3 {
            state.useless(Useless::OtherCluster, now);
            assert_eq!(state.taking(now + SECOND * 59), Taking::Nothing);
            assert!(state.why_unable().unwrap().contains("another MongoDB cluster"));
            now += MINUTE;
            assert_eq!(state.taking(now), Taking::One);
            // Commands may stop arriving for a while.
            now += MINUTE * 5;
        }
        state.useful();
        assert_eq!((state.taking(now), state.why_unable()), (Taking::All, None));
    }

    #[test]
    fn a_useful_command_restarts_the_minute() {
        let (mut state, start) = (reached(), Instant::now());
        state.useless(Useless::Refused, start);
        state.useful();
        state.useless(Useless::Refused, start + SECOND * 59);
        state.useless(Useless::Refused, start + SECOND * 61);
        assert_eq!(state.taking(start + SECOND * 61), Taking::All);
        state.useless(Useless::Refused, start + MINUTE * 10);
        state.useless(Useless::Refused, start + MINUTE * 10 + SECOND);
        assert_eq!(state.taking(start + MINUTE * 10 + SECOND), Taking::All);
    }
}

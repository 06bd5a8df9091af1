//! Whether this worker can do anything about commands, and so takes them: one place decides.
//!
//! RabbitMQ hands commands to every worker with room for them, and a worker that can do nothing with them always has room.
//!
//! | this worker | takes |
//! |---|---|
//! | has had no answer of MongoDB yet, or cannot reach it | nothing |
//! | had only commands of another cluster, or only such that MongoDB refuses to this user, for a minute | nothing; one a minute, to try |
//! | else | up to its prefetch |
//!
//! While it takes nothing it is not ready, and other workers have the commands.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

/// After so long with useless commands alone, nothing more is taken; then one is tried each time so long has passed.
const MINUTE: Duration = Duration::from_mins(1);

/// Before the first answer, or the first failure.
const NOT_YET: &str = "it has not answered yet";

const OTHER_CLUSTER: &str = "the commands are of another MongoDB cluster: mongodb_uri, state_database or the RabbitMQ vhost is \
     not that of the rescuer that sends them";
const REFUSED: &str = "MongoDB refuses this user what every command needs: grant it find and update";

/// See the module. Shared by the worker's tasks.
pub(crate) struct Ability {
    observations: Mutex<Observations>,
    changed: Notify,
}

/// What to take from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    All,
    One,
    Nothing,
}

/// Why a command was of no use to this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Useless {
    OtherCluster,
    Refused,
}

/// Whether an answer of MongoDB differs from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    News,
    AsBefore,
}

/// The pure part: what was seen, and when.
#[derive(Debug)]
struct Observations {
    /// Why MongoDB cannot be reached; none once it has answered.
    away: Option<String>,
    streak: Option<Streak>,
    /// When to take one again, once a streak has lasted for too long.
    next_try: Option<Instant>,
    /// When MongoDB last did what was asked of it for a command.
    worked: Option<Instant>,
}

/// Useless commands without a useful one between them.
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
            // A lull is no part of a streak: two forged commands an hour apart say nothing.
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

    /// MongoDB has answered: news if it had been away.
    pub(crate) fn reached(&self) -> Change {
        if self.lock().away.take().is_none() {
            return Change::AsBefore;
        }

        // What was useless may have been so because of that.
        self.lock().useful();
        self.changed.notify_one();
        Change::News
    }

    /// MongoDB cannot be reached: news if it could until now, or was not asked before.
    pub(crate) fn away(&self, reason: &str) -> Change {
        let before = self.lock().away.replace(reason.to_owned());
        self.changed.notify_one();
        match before {
            Some(before) if before != NOT_YET => Change::AsBefore,
            _ => Change::News,
        }
    }

    /// Whether MongoDB did what was asked of it for a command since then.
    pub(crate) fn worked_since(&self, then: Instant) -> bool {
        self.lock().worked.is_some_and(|worked| worked >= then)
    }

    /// A command was of this worker's cluster, and MongoDB let it be worked on.
    pub(crate) fn useful(&self) {
        let mut state = self.lock();
        state.worked = Some(Instant::now());
        if state.streak.is_some() {
            state.useful();
            self.changed.notify_one();
        }
    }

    /// A command was of no use to this worker.
    pub(crate) fn useless(&self, why: Useless) {
        self.lock().useless(why, Instant::now());
        self.changed.notify_one();
    }

    /// What to take now, and when to ask again at the latest.
    pub(crate) fn taking(&self) -> (Taking, Option<Instant>) {
        let (state, now) = (self.lock(), Instant::now());
        (state.taking(now), state.next_try.filter(|next_try| *next_try > now))
    }

    /// Why nothing is taken, in a sentence.
    pub(crate) fn why_unable(&self) -> Option<String> {
        self.lock().why_unable()
    }

    /// Has the asker of [`changed`](Self::changed) ask again.
    pub(crate) fn notify(&self) {
        self.changed.notify_one();
    }

    /// Waits until the answer may have changed; one waits at a time.
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
    fn nothing_is_taken_before_mongodb_has_answered() {
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
            // Nothing may come for a while.
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

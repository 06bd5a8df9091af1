//! The state of one stream, and the rules that decide whether it is ready.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use document_outbox::internal::{later, until};
use mongodb::bson::{DateTime, Timestamp};

use super::{
    flaws::Flaws,
    reminder::Reminder,
    snapshot::{LastError, LastSweep, Role, StreamStatus},
    unsendable::Unsendable,
    window::Window,
};
use crate::{commands::Ability, watch_plan::Plan};

/// A stream that has given no answer for this long, not even an empty page, counts as unhealthy: a replica
/// set writes something every 10 s by itself.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// The time within which another rescuer should take a lease that has ended.
pub(super) const TAKING: Duration = Duration::from_secs(5);
/// A page of changes that makes no progress for this long counts as stuck. The sweep counts as
/// stuck after this time plus the pause between its rounds.
pub(super) const STUCK: Duration = Duration::from_mins(1);
/// The report of readiness describes at most this many problems, and gives only the number of
/// further problems.
const MOST_TROUBLES: usize = 3;

/// Whether the reader of the change stream is reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    Reads,
    /// The reader waits until the follower takes its changes, and does not read in the meantime. This can
    /// take hours while a change is held.
    Waits,
}

/// The last owner that this process knows of.
#[derive(Debug)]
pub(super) struct OwnerName {
    pub(super) name: String,
    pub(super) epoch: i64,
}

/// An operation that fails and is retried until it succeeds.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) error: String,
    pub(super) logged: Reminder,
}

#[derive(Debug)]
pub(super) struct Standing {
    pub(super) role: Role,
    pub(super) owner: Option<OwnerName>,
    pub(super) lease_ends: Option<Instant>,
    pub(super) ability: Ability,
    pub(super) open: bool,
    /// The time when the stream last answered, even with an empty page.
    pub(super) moved: Instant,
    pub(super) reading: Reading,
    /// The time when the page in progress last advanced; `None` between pages.
    pub(super) page: Option<Instant>,
    /// The time when the sweep last advanced.
    pub(super) sweep_moved: Instant,
    /// The failures; the key is the operation that fails.
    pub(super) troubles: BTreeMap<String, Trouble>,
    pub(super) position: Option<Timestamp>,
    /// When the changes in progress became due.
    pub(super) head: Option<DateTime>,
    pub(super) lag: Duration,
    pub(super) window: Option<Window>,
    /// The server's time, and the moment when this process read it.
    pub(super) server: Option<(DateTime, Instant)>,
    pub(super) last_error: Option<(String, Instant)>,
    pub(super) last_sweep: Option<(LastSweep, Instant)>,
    pub(super) unwatchable: Vec<String>,
    pub(super) flaws: Flaws,
    pub(super) unsendable: Unsendable,
}

impl Standing {
    pub(super) fn new() -> Self {
        Self {
            role: Role::Starting,
            owner: None,
            lease_ends: None,
            ability: Ability::Unable,
            open: false,
            moved: Instant::now(),
            reading: Reading::Reads,
            page: None,
            sweep_moved: Instant::now(),
            troubles: BTreeMap::new(),
            position: None,
            head: None,
            lag: Duration::ZERO,
            window: None,
            server: None,
            last_error: None,
            last_sweep: None,
            unwatchable: Vec::new(),
            flaws: Flaws::default(),
            unsendable: Unsendable::default(),
        }
    }

    /// Records that this process owns the stream from now on, and drops the state of an earlier term.
    pub(super) fn owned(&mut self, owner: OwnerName, until: Instant) {
        self.role = Role::Owner;
        self.owner = Some(owner);
        self.lease_ends = Some(until);
        self.open = false;

        let now = Instant::now();
        self.moved = now;
        self.sweep_moved = now;
        self.page = None;
        self.reading = Reading::Reads;
    }

    /// Records that another process owns the stream or will own it. Values that only the owner knows
    /// become unknown.
    pub(super) fn disowned(&mut self) {
        if self.role == Role::Owner {
            self.troubles.clear();
        }
        self.role = Role::Standby;
        self.open = false;
        self.position = None;
        self.window = None;
        self.head = None;
        self.lag = Duration::ZERO;
        self.unwatchable = Vec::new();
        self.unsendable = Unsendable::default();
    }

    pub(super) fn status(&self, plan: &Plan) -> StreamStatus {
        let now = Instant::now();
        // If another process owns the stream, any position known here is outdated.
        let lag = match self.role {
            Role::Owner => Some(self.lag.as_secs_f64()),
            Role::Starting | Role::Standby => None,
        };
        let last_error = self
            .last_error
            .as_ref()
            .map(|(message, at)| LastError { message: message.clone(), ago: seconds_since(*at, now) });
        let last_sweep = self
            .last_sweep
            .as_ref()
            .map(|(sweep, at)| LastSweep { ago: seconds_since(*at, now), ..sweep.clone() });

        StreamStatus {
            name: plan.name.clone(),
            delay: plan.delay.as_secs_f64(),
            patterns: plan.coverage.patterns().map(ToString::to_string).collect(),
            role: self.role,
            able: self.ability == Ability::Able,
            owner: self.owner.as_ref().map(|owner| owner.name.clone()),
            epoch: self.owner.as_ref().map(|owner| owner.epoch),
            lease_ends_in: self.lease_ends.map(|ends| seconds_until(ends, now)),
            position: self.position.and_then(in_words),
            token_age: self.token_age().map(|age| age.as_secs_f64()),
            lag,
            headroom: self.headroom().filter(|headroom| headroom.is_finite()),
            troubles: self.troubles().collect(),
            last_error,
            last_sweep,
            problems: self.problems(),
        }
    }

    /// The server's current time, extrapolated from the last reading.
    pub(super) fn server_time(&self) -> Option<DateTime> {
        let (server, asked) = self.server?;
        Some(later(server, asked.elapsed()))
    }

    pub(super) fn token_age(&self) -> Option<Duration> {
        let (position, now) = (self.position?, self.server_time()?);
        Some(until(date_of(position), now))
    }

    /// The time in seconds from the oldest entry of the oplog to the saved position.
    pub(super) fn headroom(&self) -> Option<f64> {
        let (position, window) = (self.position?, self.window?);
        // An oplog that has never dropped an entry covers little time only because it is new.
        if window.whole {
            return Some(f64::INFINITY);
        }
        Some(f64::from(position.time) - f64::from(window.first))
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.unwatchable.clone();
        problems.extend(self.flaws.sentences.iter().cloned());
        problems.extend(self.unsendable.sentences());
        problems
    }

    fn troubles(&self) -> impl Iterator<Item = String> {
        self.troubles.iter().map(|(part, trouble)| format!("could not {part}: {}", trouble.error))
    }

    /// Why the stream is not ready, in sentences.
    pub(super) fn not_ready(&self, sweep_interval: Duration) -> Vec<String> {
        let now = Instant::now();
        let mut why: Vec<String> = self.unready(now).into_iter().collect();
        if self.role == Role::Owner {
            why.extend(self.stuck(now, sweep_interval));
        }

        // Thousands of collections can fail at the same time, but a probe's answer should stay short.
        why.extend(self.troubles().take(MOST_TROUBLES));
        let more = self.troubles.len().saturating_sub(MOST_TROUBLES);
        if more > 0 {
            why.push(format!("{more} more problems, see /status"));
        }
        why
    }

    /// Sentences for the parts of the work that make no progress.
    fn stuck(&self, now: Instant, sweep_interval: Duration) -> Vec<String> {
        let mut stuck = Vec::new();
        if let Some(moved) = self.page {
            let still = now.saturating_duration_since(moved);
            if still > STUCK {
                stuck.push(format!("a page of changes has made no progress for {} s", still.as_secs()));
            }
        }

        let still = now.saturating_duration_since(self.sweep_moved);
        if still > sweep_interval + STUCK {
            stuck.push(format!("the sweep has made no progress for {} s", still.as_secs()));
        }
        stuck
    }

    fn unready(&self, now: Instant) -> Option<String> {
        let silent = now.saturating_duration_since(self.moved);

        match self.role {
            Role::Starting => Some("the owner of this stream is not known yet".into()),
            Role::Standby if self.lease_is_over(now, TAKING) => {
                Some("the owner's lease has expired, and no other rescuer has taken it".into())
            }
            Role::Owner if self.lease_is_over(now, Duration::ZERO) => {
                Some("the lease could not be renewed".into())
            }
            Role::Owner if !self.open => Some("the change stream is not open".into()),
            Role::Owner if silent > SILENCE && self.reading == Reading::Reads => Some(format!(
                "the change stream has not answered for {} s, not even with an empty page",
                silent.as_secs()
            )),
            Role::Standby | Role::Owner => None,
        }
    }

    /// Whether the lease has been over for longer than `grace`. If no lease is known, the lease counts as
    /// over.
    fn lease_is_over(&self, now: Instant, grace: Duration) -> bool {
        match self.lease_ends {
            Some(ends) => ends + grace < now,
            None => true,
        }
    }
}

fn seconds_since(at: Instant, now: Instant) -> f64 {
    now.saturating_duration_since(at).as_secs_f64()
}

/// The number of seconds until a moment; negative for a moment in the past.
fn seconds_until(at: Instant, now: Instant) -> f64 {
    if at > now { at.duration_since(now).as_secs_f64() } else { -seconds_since(at, now) }
}

fn date_of(time: Timestamp) -> DateTime {
    DateTime::from_millis(i64::from(time.time) * 1000)
}

fn in_words(time: Timestamp) -> Option<String> {
    date_of(time).try_to_rfc3339_string().ok()
}

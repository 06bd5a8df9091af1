//! How a rescuer stands, for `/status` and `/readyz`: kept up to date by what happens, read without asking anybody.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use document_outbox::{clock::later, command::Reason, event::Events};
use mongodb::bson::{DateTime, Timestamp};
use serde::Serialize;

use crate::{RescueEvent, Warning, coverage::Plan, metrics::Metrics, oplog::Window};

/// A stream that has shown nothing for this long, not even that there is nothing, is not well: a replica set writes something
/// every 10 s by itself.
const SILENCE: Duration = Duration::from_secs(30);
/// So long after an owner's lease has ended somebody should have taken it.
const TAKING: Duration = Duration::from_secs(5);
/// A warning is told again after this long.
const AGAIN: Duration = Duration::from_secs(3600);

/// Asks a rescuer how it stands. Cheap to clone, and to ask: no server is asked.
#[derive(Clone)]
pub struct StatusHandle {
    owner: Arc<str>,
    streams: Vec<Arc<Reporter>>,
}

/// How a rescuer stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// What this process is called in leases.
    pub name: String,
    /// One for each delay, the shortest first.
    pub streams: Vec<StreamStatus>,
    /// Why it is not ready, in sentences; empty when it is. Standing by behind a live owner is ready.
    pub not_ready: Vec<String>,
}

/// How one stream stands, as far as this process knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StreamStatus {
    /// Its name in the state database.
    pub name: String,
    /// In seconds.
    pub delay: f64,
    /// The patterns of its collections.
    pub patterns: Vec<String>,
    /// What this process is to it.
    pub role: Role,
    /// Who owns it.
    pub owner: Option<String>,
    /// How often it was taken, at the least.
    pub epoch: Option<i64>,
    /// In how many seconds its lease ends, as last seen; below zero when it is over.
    pub lease_ends_in: Option<f64>,
    /// The cluster time of the saved position, RFC 3339. Only the owner knows; so it is with the rest.
    pub position: Option<String>,
    /// Age of the saved position, in seconds.
    pub token_age: Option<f64>,
    /// How much later than its delay it is read, in seconds.
    pub lag: Option<f64>,
    /// How far the oplog reaches back beyond the saved position, in seconds; absent where that isn't known.
    pub headroom: Option<f64>,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
    /// The last round of the sweep.
    pub last_sweep: Option<LastSweep>,
}

/// What a process is to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It has not yet asked who owns it.
    Starting,
    /// It reads and sweeps.
    Owner,
    /// Another does.
    Standby,
}

/// Something that went wrong; it may have passed since.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastError {
    /// What was said.
    pub message: String,
    /// How many seconds ago.
    pub ago: f64,
}

/// A round of the sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastSweep {
    /// How many seconds ago it ended.
    pub ago: f64,
    /// How many seconds it took.
    pub took: f64,
    /// Whether entries without a date were looked for as well.
    pub full: bool,
    /// How many collections were swept.
    pub collections: usize,
    /// How many documents were read.
    pub examined: usize,
    /// How many were queued.
    pub queued: usize,
    /// How many queries of the budget it took.
    pub queries: usize,
    /// Whether something kept it from reaching its end.
    pub cut_short: bool,
}

impl StatusHandle {
    pub(crate) fn new(owner: Arc<str>, streams: Vec<Arc<Reporter>>) -> Self {
        Self { owner, streams }
    }

    /// How it stands now.
    pub fn snapshot(&self) -> Status {
        let streams = self.streams.iter().map(|stream| stream.snapshot());
        let (streams, not_ready): (Vec<_>, Vec<_>) = streams.unzip();
        Status { name: self.owner.to_string(), streams, not_ready: not_ready.into_iter().flatten().collect() }
    }
}

/// Where everything that happens to one stream is told: listeners, series, status.
pub(crate) struct Reporter {
    plan: Plan,
    events: Events<RescueEvent>,
    pub(crate) metrics: Metrics,
    state: Mutex<State>,
    warned: Mutex<HashMap<&'static str, Instant>>,
}

struct State {
    role: Role,
    owner: Option<(String, i64)>,
    lease_ends: Option<Instant>,
    open: bool,
    /// When the stream last showed something, be it that there is nothing, or a change was held.
    moved: Instant,
    position: Option<Timestamp>,
    /// Since when what is dealt with is due.
    head: Option<DateTime>,
    lag: Duration,
    window: Option<Window>,
    server: Option<(DateTime, Instant)>,
    last_error: Option<(String, Instant)>,
    last_sweep: Option<(LastSweep, Instant)>,
}

impl Reporter {
    pub(crate) fn new(plan: &Plan, events: Events<RescueEvent>) -> Self {
        let named = plan.coverage.named();
        Self {
            metrics: Metrics::new(&plan.name, named.iter()),
            plan: plan.clone(),
            events,
            state: Mutex::new(State {
                role: Role::Starting,
                owner: None,
                lease_ends: None,
                open: false,
                moved: Instant::now(),
                position: None,
                head: None,
                lag: Duration::ZERO,
                window: None,
                server: None,
                last_error: None,
                last_sweep: None,
            }),
            warned: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of an event.
    pub(crate) fn emit(&self, event: RescueEvent) {
        self.metrics.record(&event);
        let now = Instant::now();
        match &event {
            RescueEvent::Opened { .. } => {
                let mut state = self.state();
                (state.open, state.moved) = (true, now);
            }
            RescueEvent::Reopened { cause } => {
                if let crate::ReopenCause::Error(error) = cause {
                    self.error(error);
                }
                let mut state = self.state();
                (state.open, state.moved) = (true, now);
            }
            RescueEvent::PositionLost { reason, .. } => {
                self.error(reason);
                self.state().open = false;
            }
            RescueEvent::CommandsFailed { error, .. } => self.error(error),
            RescueEvent::PositionSaved { cluster_time } => self.position(*cluster_time),
            RescueEvent::SweepDone { full, collections, examined, queued, queries, cut_short, took } => {
                let sweep = LastSweep {
                    ago: 0.0,
                    took: took.as_secs_f64(),
                    full: *full,
                    collections: *collections,
                    examined: *examined,
                    queued: *queued,
                    queries: *queries,
                    cut_short: *cut_short,
                };
                self.state().last_sweep = Some((sweep, now));
            }
            _ => {}
        }
        self.events.emit(event);
    }

    /// Tells of a warning, in the log and as an event, unless it was told lately.
    pub(crate) fn warn(&self, warning: Warning) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let last = warned.get(warning.kind());
        if last.is_some_and(|last| last.elapsed() < AGAIN) {
            return;
        }
        warned.insert(warning.kind(), Instant::now());
        drop(warned);
        let stream = self.plan.name.clone();
        tracing::warn!(stream, "{warning}");
        self.emit(RescueEvent::Warning { stream, warning });
    }

    pub(crate) fn error(&self, error: &str) {
        self.state().last_error = Some((error.to_owned(), Instant::now()));
    }

    pub(crate) fn owned(&self, owner: &str, epoch: i64, until: Instant) {
        let mut state = self.state();
        state.role = Role::Owner;
        state.owner = Some((owner.to_owned(), epoch));
        (state.lease_ends, state.moved, state.open) = (Some(until), Instant::now(), false);
    }

    /// Another has it, or had it; what only the owner knows is no longer known.
    pub(crate) fn standing_by(&self, others: Option<(&str, i64, Instant)>) {
        let mut state = self.state();
        if state.role == Role::Owner {
            self.metrics.disown();
        }
        state.role = Role::Standby;
        (state.open, state.position, state.window) = (false, None, None);
        (state.head, state.lag) = (None, Duration::ZERO);
        if let Some((owner, epoch, ends)) = others {
            state.owner = Some((owner.to_owned(), epoch));
            state.lease_ends = Some(ends);
        }
    }

    pub(crate) fn renewed(&self, until: Instant) {
        self.state().lease_ends = Some(until);
    }

    /// The stream has shown something, or a change is held as it should be.
    pub(crate) fn moved(&self) {
        self.state().moved = Instant::now();
    }

    /// What this stands at is saved.
    pub(crate) fn position(&self, time: Option<Timestamp>) {
        self.state().position = time;
    }

    /// What is dealt with now was due then; `None` where nothing is late.
    pub(crate) fn head(&self, due: Option<(DateTime, DateTime)>) {
        let mut state = self.state();
        state.head = due.map(|(due, _)| due);
        state.lag = due.map(|(due, now)| since(due, now)).unwrap_or_default();
        self.metrics.lag(state.lag);
    }

    /// From when a document was due for rescue until its command was confirmed.
    pub(crate) fn rescued(&self, reason: Reason, due: DateTime) {
        if let Some(now) = self.state().now() {
            self.metrics.rescue_lag(reason, since(due, now));
        }
    }

    /// Renews what changes by time alone; returns how old the position is.
    pub(crate) fn tick(&self, now: DateTime) -> Option<Duration> {
        let mut state = self.state();
        state.server = Some((now, Instant::now()));
        if let Some(due) = state.head {
            state.lag = since(due, now);
            self.metrics.lag(state.lag);
        }
        let age = state.token_age();
        self.metrics.token_age(age.unwrap_or_default());
        age
    }

    /// How far the oplog reaches; `None` where that can't be told.
    pub(crate) fn window(&self, window: Option<Window>) {
        let mut state = self.state();
        state.window = window;
        self.metrics.headroom(state.headroom());
    }

    fn snapshot(&self) -> (StreamStatus, Option<String>) {
        let state = self.state();
        let now = Instant::now();
        let seconds = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        let owns = state.role == Role::Owner;
        let ends_in = |ends: Instant| match ends > now {
            true => (ends - now).as_secs_f64(),
            false => -seconds(ends),
        };
        let status = StreamStatus {
            name: self.plan.name.clone(),
            delay: self.plan.delay.as_secs_f64(),
            patterns: self.plan.coverage.patterns().map(ToString::to_string).collect(),
            role: state.role,
            owner: state.owner.as_ref().map(|(owner, _)| owner.clone()),
            epoch: state.owner.as_ref().map(|(_, epoch)| *epoch),
            lease_ends_in: state.lease_ends.map(ends_in),
            position: state.position.and_then(in_words),
            token_age: state.token_age().map(|age| age.as_secs_f64()),
            lag: owns.then_some(state.lag.as_secs_f64()),
            headroom: state.headroom(),
            last_error: state
                .last_error
                .as_ref()
                .map(|(message, at)| LastError { message: message.clone(), ago: seconds(*at) }),
            last_sweep: state
                .last_sweep
                .as_ref()
                .map(|(sweep, at)| LastSweep { ago: seconds(*at), ..sweep.clone() }),
        };
        let unready = state.unready(now).map(|why| format!("stream {}: {why}", self.plan.name));
        (status, unready)
    }
}

impl State {
    fn now(&self) -> Option<DateTime> {
        self.server.map(|(server, taken)| later(server, taken.elapsed()))
    }

    fn token_age(&self) -> Option<Duration> {
        let (position, now) = self.position.zip(self.now())?;
        Some(since(DateTime::from_millis(i64::from(position.time) * 1000), now))
    }

    fn headroom(&self) -> Option<f64> {
        let (position, window) = self.position.zip(self.window)?;
        Some(f64::from(position.time) - f64::from(window.first))
    }

    fn unready(&self, now: Instant) -> Option<String> {
        let silent = now.saturating_duration_since(self.moved);
        let over = |grace| self.lease_ends.is_none_or(|ends| ends + grace < now);
        match self.role {
            Role::Starting => Some("it isn't known yet who owns it".into()),
            Role::Standby if over(TAKING) => {
                Some("its owner's lease is over, and nobody has taken it".into())
            }
            Role::Standby => None,
            Role::Owner if over(Duration::ZERO) => Some("the lease could not be renewed".into()),
            Role::Owner if !self.open => Some("the change stream is not open".into()),
            Role::Owner if silent > SILENCE => {
                let silent = silent.as_secs();
                Some(format!(
                    "the change stream has shown nothing for {silent} s, not even that there is nothing"
                ))
            }
            Role::Owner => None,
        }
    }
}

fn since(date: DateTime, now: DateTime) -> Duration {
    document_outbox::clock::until(date, now)
}

fn in_words(time: Timestamp) -> Option<String> {
    DateTime::from_millis(i64::from(time.time) * 1000).try_to_rfc3339_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reporter() -> Reporter {
        let settings = crate::Settings::new(vec!["shop.orders".parse().unwrap()]);
        Reporter::new(&crate::coverage::plans(&settings).remove(0), Events::default())
    }

    fn unready(report: &Reporter) -> String {
        report.snapshot().1.unwrap_or_default()
    }

    #[test]
    fn an_owner_is_ready_while_its_stream_moves_and_its_lease_lasts() {
        let (report, hour) = (reporter(), Duration::from_secs(3600));
        assert!(unready(&report).contains("who owns it"));
        let now = Instant::now();
        report.owned("me/1", 7, now + hour);
        assert!(unready(&report).contains("not open"));
        report.emit(RescueEvent::Opened { from: crate::StartedFrom::Now });
        assert_eq!(unready(&report), "");
        let long_ago = now.checked_sub(SILENCE + Duration::from_secs(1)).unwrap();
        report.state().moved = long_ago;
        assert!(unready(&report).contains("has shown nothing for 31 s"));
        report.moved();
        assert_eq!(unready(&report), "");
        report.renewed(long_ago);
        assert!(unready(&report).contains("could not be renewed"));
    }

    #[test]
    fn who_stands_by_is_ready_while_the_owner_lives() {
        let (report, now) = (reporter(), Instant::now());
        report.standing_by(Some(("other/1", 3, now + Duration::from_secs(9))));
        assert_eq!(unready(&report), "");
        let status = report.snapshot().0;
        assert_eq!(
            (status.role, status.owner.as_deref(), status.epoch),
            (Role::Standby, Some("other/1"), Some(3))
        );
        assert!(status.lag.is_none() && status.position.is_none());
        let over = now.checked_sub(TAKING + Duration::from_secs(1)).unwrap();
        report.standing_by(Some(("other/1", 3, over)));
        assert!(unready(&report).contains("nobody has taken it"));
    }

    #[test]
    fn a_warning_is_not_repeated_at_once() {
        let report = reporter();
        let mut heard = report.events.subscribe();
        let warning = |of| Warning::InlineSlow { undelivered: 9, of, delay: Duration::from_secs(1) };
        report.warn(warning(100));
        report.warn(warning(200));
        assert!(matches!(heard.try_recv(), Ok(RescueEvent::Warning { .. })));
        assert!(heard.try_recv().is_err());
    }
}

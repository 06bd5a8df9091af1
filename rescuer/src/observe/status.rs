//! How a rescuer stands, for `/status` and `/readyz`: kept up to date by what happens, read without asking anybody.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use document_outbox::{DocumentRef, command::Reason, internal::later, observe::Events};
use mongodb::bson::{DateTime, Timestamp};
use outbox_service::NamespacePattern;
use serde::Serialize;

use crate::{
    RescueEvent, Unwatchable, Warning, observe::metrics::Metrics, observe::reminder::Reminder,
    observe::unsendable::Unsendable, stream::oplog::Window, sweep::catalogue::Flaws, watch_plan::Plan,
};

/// A stream that has shown nothing for this long, not even that there is nothing, is not well: a replica set writes something
/// every 10 s by itself.
const SILENCE: Duration = Duration::from_secs(30);
/// So long after an owner's lease has ended somebody should have taken it.
const TAKING: Duration = Duration::from_secs(5);
/// A page that gets no further for this long is stuck, and so is a sweep, on top of its own pause.
const STUCK: Duration = Duration::from_secs(60);
/// A warning is repeated after this long.
const AGAIN: Duration = Duration::from_secs(3600);
/// Of more troubles than this, readiness gives only the number.
const MOST_TROUBLES: usize = 3;

/// Asks a rescuer how it stands. Cheap to clone, and to ask: no server is asked.
#[derive(Clone)]
pub struct StatusHandle {
    owner: Arc<str>,
    streams: Vec<Arc<Reporter>>,
}

impl fmt::Debug for StatusHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusHandle").field("owner", &self.owner).finish_non_exhaustive()
    }
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
    /// Whether this process can send commands, as far as it knows.
    pub able: bool,
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
    /// How far the oplog reaches back beyond the saved position, in seconds; absent where that isn't known, and where the
    /// oplog has dropped nothing yet.
    pub headroom: Option<f64>,
    /// What doesn't work now and is tried again, in sentences, each with its last error.
    pub troubles: Vec<String>,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
    /// The last round of the sweep.
    pub last_sweep: Option<LastSweep>,
    /// What is wrong with the collections, in sentences: a pattern that matches none, an index that is missing, documents
    /// that the server deletes, documents for which no command can be made.
    pub problems: Vec<String>,
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
    /// How many collections it left in the middle, for the next round to continue.
    pub unfinished: usize,
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
    sweep_interval: Duration,
    events: Events<RescueEvent>,
    pub(crate) metrics: Metrics,
    state: Mutex<State>,
    warned: Mutex<HashMap<String, Instant>>,
}

struct State {
    role: Role,
    owner: Option<(String, i64)>,
    lease_ends: Option<Instant>,
    able: bool,
    open: bool,
    /// When the stream last showed something, even if only that there is nothing.
    moved: Instant,
    /// The reader waits for the follower to take what it has read, and reads nothing meanwhile.
    reader_waits: bool,
    /// When the page in work got a step further; none between pages.
    page: Option<Instant>,
    /// When the sweep got a step further.
    sweep_moved: Instant,
    /// By what doesn't work.
    troubles: BTreeMap<String, Trouble>,
    position: Option<Timestamp>,
    /// Since when what is dealt with is due.
    head: Option<DateTime>,
    lag: Duration,
    window: Option<Window>,
    server: Option<(DateTime, Instant)>,
    last_error: Option<(String, Instant)>,
    last_sweep: Option<(LastSweep, Instant)>,
    unwatchable: Vec<String>,
    flaws: Flaws,
    unsendable: Unsendable,
}

/// What doesn't work, and is tried again until it does.
#[derive(Default)]
struct Trouble {
    error: String,
    logged: Reminder,
}

impl Reporter {
    pub(crate) fn new(plan: &Plan, sweep_interval: Duration, events: Events<RescueEvent>) -> Self {
        Self {
            metrics: Metrics::new(&plan.name, &plan.coverage),
            plan: plan.clone(),
            sweep_interval,
            events,
            state: Mutex::new(State {
                role: Role::Starting,
                owner: None,
                lease_ends: None,
                able: false,
                open: false,
                moved: Instant::now(),
                reader_waits: false,
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
            RescueEvent::Opened { .. } => self.state().open = true,
            RescueEvent::Reopened { cause } => {
                if let crate::ReopenCause::Error(error) = cause {
                    self.error(error);
                }
                // That it opens proves nothing yet: one that breaks off at its first read opens each time.
                self.state().open = true;
            }
            RescueEvent::PositionLost { reason, .. } => {
                self.error(reason);
                self.state().open = false;
            }
            RescueEvent::CommandsFailed { error, .. } => self.error(error),
            RescueEvent::PositionSaved { cluster_time } => self.position(*cluster_time),
            RescueEvent::PageDone { .. } => self.state().page = None,
            RescueEvent::SweepDone {
                full,
                collections,
                examined,
                queued,
                queries,
                unfinished,
                cut_short,
                took,
            } => {
                let sweep = LastSweep {
                    ago: 0.0,
                    took: took.as_secs_f64(),
                    full: *full,
                    collections: *collections,
                    examined: *examined,
                    queued: *queued,
                    queries: *queries,
                    unfinished: *unfinished,
                    cut_short: *cut_short,
                };
                let mut state = self.state();
                (state.last_sweep, state.sweep_moved) = (Some((sweep, now)), now);
            }
            _ => {}
        }
        self.events.emit(event);
    }

    /// Tells of a warning, in the log and as an event, unless it was told lately.
    pub(crate) fn warn(&self, warning: Warning) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        warned.retain(|_, last| last.elapsed() < AGAIN);
        let subject = warning.subject();
        if warned.contains_key(&subject) {
            return;
        }
        warned.insert(subject, Instant::now());
        drop(warned);
        let stream = self.plan.name.clone();
        tracing::warn!(stream, "{warning}");
        self.emit(RescueEvent::Warning { stream, warning });
    }

    /// Something of this stream doesn't work and will be tried again: `part` completes the sentence "could not …".
    ///
    /// It is shown in readiness, status and series until it has [`healed`](Self::healed), and logged when it begins and once a
    /// minute while it lasts.
    pub(crate) fn trouble(&self, part: &str, error: &str) {
        let mut state = self.state();
        let trouble = state.troubles.entry(part.to_owned()).or_default();
        trouble.error = error.to_owned();
        let log = trouble.logged.is_due();
        self.metrics.troubles(state.troubles.len());
        drop(state);

        if log {
            tracing::warn!(stream = self.plan.name, error, "could not {part}; trying again");
        }
        self.error(&format!("could not {part}: {error}"));
    }

    /// This works again, or is no longer wanted.
    pub(crate) fn healed(&self, part: &str) {
        let mut state = self.state();
        if state.troubles.remove(part).is_none() {
            return;
        }
        self.metrics.troubles(state.troubles.len());
        drop(state);
        tracing::info!(stream = self.plan.name, "no longer in trouble: {part}");
    }

    /// A page is in work, or has got a step further.
    pub(crate) fn page_moved(&self) {
        self.state().page = Some(Instant::now());
    }

    /// The sweep has got a step further: something was listed, read or sent.
    pub(crate) fn sweep_moved(&self) {
        self.state().sweep_moved = Instant::now();
    }

    /// The reader waits until what it has read is taken; a change that is held can take hours.
    pub(crate) fn reader_waits(&self, waits: bool) {
        let mut state = self.state();
        (state.reader_waits, state.moved) = (waits, Instant::now());
    }

    pub(crate) fn error(&self, error: &str) {
        self.state().last_error = Some((error.to_owned(), Instant::now()));
    }

    pub(crate) fn owned(&self, owner: &str, epoch: i64, until: Instant) {
        let mut state = self.state();
        state.role = Role::Owner;
        state.owner = Some((owner.to_owned(), epoch));
        (state.lease_ends, state.open) = (Some(until), false);
        let now = Instant::now();
        (state.moved, state.sweep_moved) = (now, now);
        (state.page, state.reader_waits) = (None, false);
    }

    /// Another has it, or had it; what only the owner knows is no longer known.
    pub(crate) fn standing_by(&self, others: Option<(&str, i64, Instant)>) {
        let mut state = self.state();
        if state.role == Role::Owner {
            self.metrics.disown();
            state.troubles.clear();
        }
        state.role = Role::Standby;
        (state.open, state.position, state.window) = (false, None, None);
        (state.head, state.lag) = (None, Duration::ZERO);
        (state.unwatchable, state.unsendable) = (Vec::new(), Unsendable::default());
        if let Some((owner, epoch, ends)) = others {
            state.owner = Some((owner.to_owned(), epoch));
            state.lease_ends = Some(ends);
        }
    }

    /// Whether this process can send commands.
    pub(crate) fn able(&self, is_able: bool) {
        self.state().able = is_able;
        self.metrics.able(is_able);
    }

    pub(crate) fn renewed(&self, until: Instant) {
        self.state().lease_ends = Some(until);
    }

    /// The stream has shown something, even if only that there is nothing.
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

    /// What is wrong with the collections.
    pub(crate) fn flaws(&self, flaws: Flaws) {
        let mut state = self.state();
        self.metrics.flaws(&state.flaws, &flaws);
        state.flaws = flaws;
    }

    /// Which patterns match nothing that can be watched.
    pub(crate) fn unwatchable(&self, found: &[(NamespacePattern, Unwatchable)]) {
        let patterns: Vec<String> = found.iter().map(|(pattern, _)| pattern.to_string()).collect();
        self.metrics.unwatchable(&patterns);
        self.state().unwatchable = found.iter().map(|(pattern, why)| format!("{pattern} {why}")).collect();
    }

    /// No command can be made for a document; whether that is new.
    pub(crate) fn unsendable(&self, document: &DocumentRef, reason: &str) -> bool {
        self.state().unsendable.add(document, reason)
    }

    fn snapshot(&self) -> (StreamStatus, Vec<String>) {
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
            able: state.able,
            owner: state.owner.as_ref().map(|(owner, _)| owner.clone()),
            epoch: state.owner.as_ref().map(|(_, epoch)| *epoch),
            lease_ends_in: state.lease_ends.map(ends_in),
            position: state.position.and_then(in_words),
            token_age: state.token_age().map(|age| age.as_secs_f64()),
            lag: owns.then_some(state.lag.as_secs_f64()),
            headroom: state.headroom().filter(|headroom| headroom.is_finite()),
            troubles: state.troubles().collect(),
            last_error: state
                .last_error
                .as_ref()
                .map(|(message, at)| LastError { message: message.clone(), ago: seconds(*at) }),
            last_sweep: state
                .last_sweep
                .as_ref()
                .map(|(sweep, at)| LastSweep { ago: seconds(*at), ..sweep.clone() }),
            problems: state.problems(),
        };
        let why = state.not_ready(now, self.sweep_interval);
        let unready = why.into_iter().map(|why| format!("stream {}: {why}", self.plan.name)).collect();
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

    fn problems(&self) -> Vec<String> {
        let mut problems = self.unwatchable.clone();
        problems.extend(self.flaws.sentences.iter().cloned());
        problems.extend(self.unsendable.sentences());
        problems
    }

    fn headroom(&self) -> Option<f64> {
        let (position, window) = self.position.zip(self.window)?;
        // Nothing was ever dropped from the oplog: that it is young doesn't mean that it is short.
        if window.whole {
            return Some(f64::INFINITY);
        }
        Some(f64::from(position.time) - f64::from(window.first))
    }

    fn troubles(&self) -> impl Iterator<Item = String> {
        self.troubles.iter().map(|(part, trouble)| format!("could not {part}: {}", trouble.error))
    }

    /// Why it is not ready, in sentences.
    fn not_ready(&self, now: Instant, sweep_interval: Duration) -> Vec<String> {
        let mut why: Vec<String> = self.unready(now).into_iter().collect();
        if self.role == Role::Owner {
            why.extend(self.stuck(now, sweep_interval));
        }
        why.extend(self.troubles().take(MOST_TROUBLES));
        if let Some(more) = self.troubles.len().checked_sub(MOST_TROUBLES).filter(|more| *more > 0) {
            why.push(format!("{more} more troubles, see /status"));
        }
        why
    }

    /// What of the work gets no further.
    fn stuck(&self, now: Instant, sweep_interval: Duration) -> Vec<String> {
        let mut stuck = Vec::new();
        let page = self.page.map(|moved| now.saturating_duration_since(moved));
        if let Some(still) = page.filter(|still| *still > STUCK) {
            let seconds = still.as_secs();
            stuck.push(format!("a page of changes has got no further for {seconds} s"));
        }
        let still = now.saturating_duration_since(self.sweep_moved);
        if still > sweep_interval + STUCK {
            stuck.push(format!("the sweep has got no further for {} s", still.as_secs()));
        }
        stuck
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
            Role::Owner if silent > SILENCE && !self.reader_waits => {
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
    document_outbox::internal::until(date, now)
}

fn in_words(time: Timestamp) -> Option<String> {
    DateTime::from_millis(i64::from(time.time) * 1000).try_to_rfc3339_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reporter() -> Reporter {
        let settings = crate::Settings::new(vec!["shop.orders".parse().unwrap()]);
        Reporter::new(
            &crate::watch_plan::plans(&settings).remove(0),
            settings.sweep_interval,
            Events::default(),
        )
    }

    fn unready(report: &Reporter) -> String {
        report.snapshot().1.join("; ")
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
    fn work_that_gets_no_further_is_not_ready() {
        let (report, now) = (reporter(), Instant::now());
        report.owned("me/1", 7, now + Duration::from_secs(3600));
        report.emit(RescueEvent::Opened { from: crate::StartedFrom::Now });
        report.page_moved();
        assert_eq!(unready(&report), "");

        let long_ago = now.checked_sub(STUCK * 2).unwrap();
        report.state().page = Some(long_ago);
        assert!(unready(&report).contains("a page of changes has got no further for 1"));
        report.emit(RescueEvent::PageDone { changes: 1, documents: 1, queued: 0 });
        assert_eq!(unready(&report), "");

        report.state().sweep_moved = long_ago;
        assert!(unready(&report).contains("the sweep has got no further for 1"));
        report.sweep_moved();
        assert_eq!(unready(&report), "");
    }

    #[test]
    fn a_stream_that_only_opens_is_not_ready() {
        let (report, now) = (reporter(), Instant::now());
        report.owned("me/1", 7, now + Duration::from_secs(3600));
        report.emit(RescueEvent::Opened { from: crate::StartedFrom::Now });
        report.state().moved = now.checked_sub(SILENCE * 2).unwrap();
        report.emit(RescueEvent::Reopened { cause: crate::ReopenCause::Ended });
        assert!(unready(&report).contains("has shown nothing"));

        report.reader_waits(true);
        report.state().moved = now.checked_sub(SILENCE * 2).unwrap();
        assert_eq!(unready(&report), "", "it reads on when the change that is held is taken");
    }

    #[test]
    fn troubles_are_shown_until_they_heal() {
        let (report, now) = (reporter(), Instant::now());
        report.owned("me/1", 7, now + Duration::from_secs(3600));
        report.emit(RescueEvent::Opened { from: crate::StartedFrom::Now });
        for number in 1..=5 {
            report.trouble(&format!("sweep shop.c{number}"), "not allowed");
        }
        let unready_now = unready(&report);
        assert!(unready_now.contains("could not sweep shop.c1: not allowed"), "{unready_now}");
        assert!(unready_now.contains("2 more troubles"), "{unready_now}");
        assert_eq!(report.snapshot().0.troubles.len(), 5);

        for number in 1..=5 {
            report.healed(&format!("sweep shop.c{number}"));
        }
        assert_eq!(unready(&report), "");
    }

    /// What a thread logs while this is in force.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn trouble_that_lasts_is_logged_once() {
        let (report, log) = (reporter(), Log::default());
        let into = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || into.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..1000 {
                report.trouble("save the position", &format!("not allowed, {number}"));
            }
            report.healed("save the position");
            report.healed("save the position");
        });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(
            lines[0].contains("could not save the position") && lines[1].contains("no longer in trouble")
        );
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
    fn a_young_oplog_is_not_a_short_one() {
        let report = reporter();
        report.position(Some(Timestamp { time: 1000, increment: 1 }));
        let window = |whole| Some(Window { first: 900, last: 1000, whole });
        report.window(window(true));
        assert_eq!(report.state().headroom(), Some(f64::INFINITY));
        assert_eq!(report.snapshot().0.headroom, None);
        report.window(window(false));
        assert_eq!(report.snapshot().0.headroom, Some(100.0));
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

//! Reports everything that happens to a stream to listeners, metrics and the status.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use document_outbox::{DocumentRef, command::Reason, internal::until, observe::Events};
use mongodb::bson::{DateTime, Timestamp};
use outbox_service::NamespacePattern;
use parking_lot::{Mutex, MutexGuard};

use super::{
    event::{ReopenCause, RescueEvent},
    flaws::Flaws,
    metrics::Metrics,
    snapshot::{LastSweep, Role, StreamStatus},
    standing::{OwnerName, Reading, Standing},
    warning::{Unwatchable, Warning},
    window::Window,
};
use crate::{commands::Ability, watch_plan::Plan};

/// The time after which a warning is repeated.
const AGAIN: Duration = Duration::from_hours(1);

/// Reports for one stream, both while this process owns the stream and while it doesn't.
pub(crate) struct Reporter {
    plan: Plan,
    sweep_interval: Duration,
    events: Events<RescueEvent>,
    metrics: Metrics,
    standing: Mutex<Standing>,
    /// The time when each warning was last reported. The key is the subject of the warning.
    warned: Mutex<HashMap<String, Instant>>,
}

impl Reporter {
    pub(crate) fn new(plan: &Plan, sweep_interval: Duration, events: Events<RescueEvent>) -> Self {
        Self {
            metrics: Metrics::new(&plan.name, &plan.coverage),
            plan: plan.clone(),
            sweep_interval,
            events,
            standing: Mutex::new(Standing::new()),
            warned: Mutex::default(),
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock()
    }

    pub(crate) fn status(&self) -> StreamStatus {
        self.standing().status(&self.plan)
    }

    /// Why the stream is not ready, in sentences.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        for why in self.standing().not_ready(self.sweep_interval) {
            sentences.push(format!("stream {}: {why}", self.plan.name));
        }
        sentences
    }

    /// Reports an event to the metrics, the status and the listeners.
    pub(crate) fn emit(&self, event: RescueEvent) {
        self.metrics.record(&event);

        match &event {
            RescueEvent::Opened { .. } => self.standing().open = true,
            RescueEvent::Reopened { cause } => {
                if let ReopenCause::Error(error) = cause {
                    self.error(error);
                }
                // A successful opening alone proves little: a stream that fails at its first read also
                // opens successfully each time.
                self.standing().open = true;
            }
            RescueEvent::PositionLost { reason, .. } => {
                self.error(reason);
                self.standing().open = false;
            }
            RescueEvent::CommandsFailed { error, .. } => self.error(error),
            RescueEvent::PositionSaved { cluster_time } => self.position(*cluster_time),
            RescueEvent::PageDone { .. } => self.standing().page = None,
            RescueEvent::SweepDone { .. } => self.swept(&event),
            _ => {}
        }

        self.events.emit(event);
    }

    /// Records that a round of the sweep ended.
    fn swept(&self, event: &RescueEvent) {
        let Some(sweep) = LastSweep::of(event) else {
            return;
        };
        let now = Instant::now();
        let mut standing = self.standing();
        standing.last_sweep = Some((sweep, now));
        standing.sweep_moved = now;
    }

    /// Logs a warning and emits an event, unless the same warning was reported recently.
    pub(crate) fn warn(&self, warning: Warning) {
        let mut warned = self.warned.lock();
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

    /// Reports that an operation of this stream failed and will be retried: `part` completes the sentence
    /// "could not …".
    ///
    /// The failure is visible in readiness, status and metrics until the operation has
    /// [`healed`](Self::healed). It is logged when it begins, and then once a minute while it
    /// lasts.
    pub(crate) fn trouble(&self, part: &str, error: &str) {
        let mut standing = self.standing();
        let trouble = standing.troubles.entry(part.to_owned()).or_default();
        error.clone_into(&mut trouble.error);
        let log = trouble.logged.is_due();
        self.metrics.troubles(standing.troubles.len());
        drop(standing);

        if log {
            tracing::warn!(stream = self.plan.name, error, "could not {part}; trying again");
        }
        self.error(&format!("could not {part}: {error}"));
    }

    /// Records that an operation of this stream works again, or is no longer needed.
    pub(crate) fn healed(&self, part: &str) {
        let mut standing = self.standing();
        if standing.troubles.remove(part).is_none() {
            return;
        }
        self.metrics.troubles(standing.troubles.len());
        drop(standing);

        tracing::info!(stream = self.plan.name, "the rescuer no longer fails to {part}");
    }

    fn error(&self, error: &str) {
        self.standing().last_error = Some((error.to_owned(), Instant::now()));
    }

    /// Records that a page of changes was begun or has made progress.
    pub(crate) fn page_moved(&self) {
        self.standing().page = Some(Instant::now());
    }

    /// Records that the sweep has advanced: it listed, read or sent something.
    pub(crate) fn sweep_moved(&self) {
        self.standing().sweep_moved = Instant::now();
    }

    /// Records that the reader begins to read, or to wait.
    pub(crate) fn reading(&self, reading: Reading) {
        let mut standing = self.standing();
        standing.reading = reading;
        standing.moved = Instant::now();
    }

    /// Records that the stream has shown a change.
    pub(crate) fn change_read(&self) {
        self.metrics.change_read();
        self.moved();
    }

    /// Records that the stream has answered, even if only with an empty page.
    pub(crate) fn moved(&self) {
        self.standing().moved = Instant::now();
    }

    /// Records that this process owns the stream until `until`.
    pub(crate) fn owned(&self, owner: &str, epoch: i64, until: Instant) {
        self.standing().owned(OwnerName { name: owner.to_owned(), epoch }, until);
    }

    /// Records that another process owns or owned the stream. Values that only the owner knows become
    /// unknown.
    pub(crate) fn standing_by(&self, others: Option<(&str, i64, Instant)>) {
        let mut standing = self.standing();
        if standing.role == Role::Owner {
            self.metrics.disown();
        }
        standing.disowned();

        if let Some((owner, epoch, ends)) = others {
            standing.owner = Some(OwnerName { name: owner.to_owned(), epoch });
            standing.lease_ends = Some(ends);
        }
    }

    /// Records whether this process can send commands.
    pub(crate) fn ability(&self, ability: Ability) {
        self.standing().ability = ability;
        self.metrics.ability(ability);
    }

    pub(crate) fn renewed(&self, until: Instant) {
        self.standing().lease_ends = Some(until);
    }

    /// Records that the position with this time is saved.
    pub(crate) fn position(&self, time: Option<Timestamp>) {
        self.standing().position = time;
    }

    /// Records that the changes in progress became due at `due`. The current time is `now`.
    pub(crate) fn head_due(&self, due: DateTime, now: DateTime) {
        let mut standing = self.standing();
        standing.head = Some(due);
        standing.lag = until(due, now);
        self.metrics.lag(standing.lag);
    }

    /// Records that no change in progress is late.
    pub(crate) fn head_on_time(&self) {
        let mut standing = self.standing();
        standing.head = None;
        standing.lag = Duration::ZERO;
        self.metrics.lag(standing.lag);
    }

    /// Records the time from when a document became due for rescue until its command was confirmed.
    pub(crate) fn rescued(&self, reason: Reason, due: DateTime) {
        if let Some(now) = self.standing().server_time() {
            self.metrics.rescue_lag(reason, until(due, now));
        }
    }

    /// Updates the values that change with time alone; returns the age of the position.
    pub(crate) fn tick(&self, now: DateTime) -> Option<Duration> {
        let mut standing = self.standing();
        standing.server = Some((now, Instant::now()));
        if let Some(due) = standing.head {
            standing.lag = until(due, now);
            self.metrics.lag(standing.lag);
        }

        let age = standing.token_age();
        self.metrics.token_age(age.unwrap_or_default());
        age
    }

    /// Records the time span of the oplog; `None` if unknown.
    pub(crate) fn window(&self, window: Option<Window>) {
        let mut standing = self.standing();
        standing.window = window;
        self.metrics.headroom(standing.headroom());
    }

    /// Records the problems of the collections.
    pub(crate) fn flaws(&self, flaws: Flaws) {
        let mut standing = self.standing();
        self.metrics.flaws(&standing.flaws, &flaws);
        standing.flaws = flaws;
    }

    /// Records which patterns match no collection that can be watched.
    pub(crate) fn unwatchable(&self, found: &[(NamespacePattern, Unwatchable)]) {
        let mut patterns = Vec::with_capacity(found.len());
        let mut sentences = Vec::with_capacity(found.len());
        for (pattern, why) in found {
            patterns.push(pattern.to_string());
            sentences.push(format!("{pattern} {why}"));
        }

        self.metrics.unwatchable(&patterns);
        self.standing().unwatchable = sentences;
    }

    /// Records that no command can be made for a document. Emits an event and logs it if the document is
    /// new.
    pub(crate) fn unsendable(&self, document: DocumentRef, reason: String) {
        let is_new = self.standing().unsendable.add(&document, &reason);
        if !is_new {
            return;
        }
        tracing::error!(
            document = super::unsendable::name(&document),
            failure = reason,
            "no command can be made for this document"
        );
        self.emit(RescueEvent::Unsendable { document, reason });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::{
        event::StartedFrom,
        standing::{SILENCE, STUCK, TAKING},
    };

    fn reporter() -> Reporter {
        let settings = crate::settings::Settings::new(vec!["shop.orders".parse().unwrap()]);
        Reporter::new(
            &crate::watch_plan::plans(&settings).remove(0),
            settings.sweep_interval,
            Events::default(),
        )
    }

    fn unready(report: &Reporter) -> String {
        report.not_ready().join("; ")
    }

    #[test]
    fn an_owner_is_ready_while_stream_and_lease_last() {
        let (report, hour) = (reporter(), Duration::from_hours(1));
        assert!(unready(&report).contains("the owner of this stream is not known yet"));
        let now = Instant::now();
        report.owned("me/1", 7, now + hour);
        assert!(unready(&report).contains("not open"));
        report.emit(RescueEvent::Opened { from: StartedFrom::Now });
        assert_eq!(unready(&report), "");
        let long_ago = now.checked_sub(SILENCE + Duration::from_secs(1)).unwrap();
        report.standing().moved = long_ago;
        assert!(unready(&report).contains("has not answered for 31 s"));
        report.moved();
        assert_eq!(unready(&report), "");
        report.renewed(long_ago);
        assert!(unready(&report).contains("could not be renewed"));
    }

    #[test]
    fn work_without_progress_is_not_ready() {
        let (report, now) = (reporter(), Instant::now());
        report.owned("me/1", 7, now + Duration::from_hours(1));
        report.emit(RescueEvent::Opened { from: StartedFrom::Now });
        report.page_moved();
        assert_eq!(unready(&report), "");

        let long_ago = now.checked_sub(STUCK * 2).unwrap();
        report.standing().page = Some(long_ago);
        assert!(unready(&report).contains("a page of changes has made no progress for 1"));
        report.emit(RescueEvent::PageDone { changes: 1, documents: 1, queued: 0 });
        assert_eq!(unready(&report), "");

        report.standing().sweep_moved = long_ago;
        assert!(unready(&report).contains("the sweep has made no progress for 1"));
        report.sweep_moved();
        assert_eq!(unready(&report), "");
    }

    #[test]
    fn a_stream_that_only_opens_is_not_ready() {
        let (report, now) = (reporter(), Instant::now());
        report.owned("me/1", 7, now + Duration::from_hours(1));
        report.emit(RescueEvent::Opened { from: StartedFrom::Now });
        report.standing().moved = now.checked_sub(SILENCE * 2).unwrap();
        report.emit(RescueEvent::Reopened { cause: ReopenCause::Ended });
        assert!(unready(&report).contains("has not answered for"));

        report.reading(Reading::Waits);
        report.standing().moved = now.checked_sub(SILENCE * 2).unwrap();
        assert_eq!(unready(&report), "", "the reader continues when the held change is taken");
    }

    #[test]
    fn problems_are_shown_until_they_end() {
        let (report, now) = (reporter(), Instant::now());
        report.owned("me/1", 7, now + Duration::from_hours(1));
        report.emit(RescueEvent::Opened { from: StartedFrom::Now });
        for number in 1..=5 {
            report.trouble(&format!("sweep shop.c{number}"), "not allowed");
        }
        let unready_now = unready(&report);
        assert!(unready_now.contains("could not sweep shop.c1: not allowed"), "{unready_now}");
        assert!(unready_now.contains("2 more problems"), "{unready_now}");
        assert_eq!(report.status().troubles.len(), 5);

        for number in 1..=5 {
            report.healed(&format!("sweep shop.c{number}"));
        }
        assert_eq!(unready(&report), "");
    }

    /// Collects the log lines of a thread while this value exists.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend(bytes);
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
        let log = String::from_utf8(log.0.lock().clone()).unwrap();
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(
            lines[0].contains("could not save the position") && lines[1].contains("no longer fails to save")
        );
    }

    #[test]
    fn a_standby_is_ready_while_the_owner_lives() {
        let (report, now) = (reporter(), Instant::now());
        report.standing_by(Some(("other/1", 3, now + Duration::from_secs(9))));
        assert_eq!(unready(&report), "");
        let status = report.status();
        assert_eq!(
            (status.role, status.owner.as_deref(), status.epoch),
            (Role::Standby, Some("other/1"), Some(3))
        );
        assert!(status.lag.is_none() && status.position.is_none());
        let over = now.checked_sub(TAKING + Duration::from_secs(1)).unwrap();
        report.standing_by(Some(("other/1", 3, over)));
        assert!(unready(&report).contains("no other rescuer has taken it"));
    }

    #[test]
    fn a_young_oplog_is_not_a_short_one() {
        let report = reporter();
        report.position(Some(Timestamp { time: 1000, increment: 1 }));
        let window = |whole| Some(Window { first: 900, last: 1000, whole });
        report.window(window(true));
        assert_eq!(report.standing().headroom(), Some(f64::INFINITY));
        assert_eq!(report.status().headroom, None);
        report.window(window(false));
        assert_eq!(report.status().headroom, Some(100.0));
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

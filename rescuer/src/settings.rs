//! The settings of a rescuer, and their problems.

use std::time::Duration;

use document_outbox::DeliveryOrder;
use mongodb::{Namespace, bson::Timestamp};
use outbox_service::{InvalidPattern, InvalidSettings, NamespacePattern};

/// The shortest delay. With a shorter one, the rescuer would race the inline dispatcher.
pub const SHORTEST_DELAY: Duration = Duration::from_secs(1);
/// The longest delay. Few oplogs cover more time.
pub const LONGEST_DELAY: Duration = Duration::from_hours(24);

/// The shortest lease. A rescuer on a busy machine would lose a shorter one.
pub const SHORTEST_LEASE: Duration = Duration::from_secs(1);
/// The longest lease. With a longer one, messages would wait too long after a crash.
pub const LONGEST_LEASE: Duration = Duration::from_mins(10);

/// The largest page. A larger one would take too long to read.
const LARGEST_PAGE: usize = 10_000;
/// The longest time for which a cursor may stay unread. The server drops a cursor that is idle for 10
/// minutes.
const LONGEST_CURSOR_IDLE: Duration = Duration::from_mins(9);
/// The longest time that a stopping rescuer's last write may take. The default `shutdown_grace` has room for
/// several such writes.
const LONGEST_LAST_WRITE: Duration = Duration::from_secs(2);

/// The policy for a stream that cannot continue from the saved position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum OnHistoryLost {
    /// Continue from now and sweep everything. Loses no message.
    #[default]
    Sweep,
    /// Stop with an error and keep the position, so that a person can decide.
    Fail,
    /// Continue from now. Missed messages wait for the regular rounds of the sweep.
    Latest,
}

/// The settings of a rescuer. [`Settings::new`] gives the defaults; [`Settings::validate`] finds the
/// problems.
///
/// Later versions may add fields, so a value is made by [`Settings::new`] and changed by
/// [`Settings::with`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The stream's name in the state database. Rescuers that watch different collections but share a
    /// state database need different names. Default: `default`.
    pub stream: String,
    /// The collections with outboxes. If several patterns match a collection, the first one applies. Each
    /// delay has its own stream.
    pub watch: Vec<NamespacePattern>,
    /// The watched collections whose messages may be delivered out of order within a document. Default:
    /// none.
    pub unordered: Vec<NamespacePattern>,
    /// The watched collections in which a dead message blocks the later messages of its document. Default:
    /// none.
    pub dead_blocks: Vec<NamespacePattern>,
    /// How old a message must be before it is rescued, so that the inline dispatcher can deliver it first. A
    /// pattern in `watch` can have its own delay instead. From 1 s to 24 h. Default: 15 s.
    pub delay: Duration,
    /// The duration of the lease on a stream. If a rescuer dies, another replaces it after at most this
    /// time. From 1 s to 10 min. Default: 15 s.
    pub ownership_lease: Duration,
    /// If set, the rescuer ignores the saved position and reads from this time when it first becomes the
    /// owner of a stream. It is meant for operators who want changes to be checked again, and applies at
    /// every start for as long as it is set. Default: none.
    pub start_at: Option<Timestamp>,
    /// The interval between sweeps of due entries. Default: 10 s.
    pub sweep_interval: Duration,
    /// The interval at which the sweep also reads entries without a date, and at which it reads every
    /// collection that lacks the sweep's index from end to end. Default: 1 h.
    pub full_sweep_interval: Duration,
    /// The maximum number of queries per second that the sweeps of all streams send together. Default: 50.
    pub sweep_queries_per_second: u32,
    /// The maximum number of changes or documents that are processed together. Default: 500.
    pub page_size: usize,
    /// The interval at which the position of an idle stream is saved. Default: 10 s.
    pub idle_save_interval: Duration,
    /// The minimum interval between saves of the position while changes arrive. Default: 500 ms.
    pub busy_save_interval: Duration,
    /// If a change is held for longer than this, the cursor is closed and later reopened, because the
    /// server drops a cursor that isn't read for 10 minutes. Default: 5 min.
    pub cursor_idle_limit: Duration,
    /// The interval between counts of pending and dead messages for the metrics. Counting uses at most a
    /// fifth of the sweep's queries. Default: 30 s.
    pub totals_interval: Duration,
    /// Whether pending and dead messages are counted at all. Set this to false if the metrics aren't read.
    /// Default: true.
    pub count_totals: bool,
    /// How long the supervisor of this process, such as Kubernetes, lets the rescuer continue after it has
    /// requested a stop. The value is only used for a warning, because it should not be longer than the
    /// lease. Default: unknown.
    pub shutdown_grace: Option<Duration>,
    /// The policy for a stream that cannot continue from the saved position. Default: [`OnHistoryLost::Sweep`].
    pub on_history_lost: OnHistoryLost,
    /// If the server refuses to open the stream, and its errors don't show whether the position is
    /// the cause, the position counts as lost once the server has refused repeatedly for this time.
    /// Default: 30 s.
    pub refused_for: Duration,
    /// The database for positions. Default: `document_outbox`.
    pub state_database: String,
    /// The maximum number of recently queued documents that the sweeps of all streams remember
    /// together. This is also the maximum number of documents that the sweeps can have queued at a
    /// time. A document takes about 100 bytes. Default: 100,000.
    pub queued_capacity: usize,
    /// How long the sweep waits before it queues a document again, unless the document's outbox
    /// changes. The pause doubles each time, up to 2 min. Default: 30 s.
    pub requeue_pause: Duration,
}

impl Settings {
    /// Changes settings, as in `Settings::new(watch).with(|settings| settings.delay = delay)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The default settings for collections given as text, such as `shop.orders,stock.*`.
    ///
    /// # Errors
    /// Returns the error of the first pattern that is invalid.
    pub fn watching(patterns: &str) -> Result<Self, InvalidPattern> {
        Ok(Self::new(NamespacePattern::list(patterns)?))
    }

    /// The default settings for the collections to watch.
    #[must_use]
    pub fn new(watch: Vec<NamespacePattern>) -> Self {
        Self {
            stream: "default".into(),
            watch,
            unordered: Vec::new(),
            dead_blocks: Vec::new(),
            delay: Duration::from_secs(15),
            ownership_lease: Duration::from_secs(15),
            start_at: None,
            sweep_interval: Duration::from_secs(10),
            full_sweep_interval: Duration::from_hours(1),
            sweep_queries_per_second: 50,
            page_size: 500,
            idle_save_interval: Duration::from_secs(10),
            busy_save_interval: Duration::from_millis(500),
            cursor_idle_limit: Duration::from_mins(5),
            totals_interval: Duration::from_secs(30),
            count_totals: true,
            shutdown_grace: None,
            on_history_lost: OnHistoryLost::default(),
            refused_for: Duration::from_secs(30),
            state_database: "document_outbox".into(),
            queued_capacity: 100_000,
            requeue_pause: Duration::from_secs(30),
        }
    }

    /// The time limit for each of a stopping rescuer's last writes: the write of the position, then the
    /// write of the lease.
    pub(crate) fn last_write(&self) -> Duration {
        let share = self.shutdown_grace.map_or(LONGEST_LAST_WRITE, |grace| grace / 4);
        share.min(LONGEST_LAST_WRITE)
    }

    /// Checks whether a rescuer can work with these settings.
    ///
    /// # Errors
    /// Returns all problems, each with the names of the settings that cause the problem.
    pub fn validate(&self) -> Result<(), InvalidSettings> {
        let mut problems = InvalidSettings::default();
        self.check_patterns(&mut problems);
        self.check_delays(&mut problems);
        self.check_times_and_sizes(&mut problems);
        problems.into_result()
    }

    fn check_patterns(&self, problems: &mut InvalidSettings) {
        problems.add_if(
            self.watch.is_empty(),
            &["watch"],
            "names no collection; name at least one, as in shop.orders or shop.*",
        );
        problems.add_if(
            self.watch.iter().any(|pattern| pattern.database().exact() == Some(&self.state_database)),
            &["watch", "state_database"],
            "names collections in state_database, so the rescuer would watch its own positions; watch other \
             collections, or change state_database",
        );

        // A pattern in `unordered` or `dead_blocks` that matches no watched collection would never
        // have an effect.
        problems.add_if(
            self.unordered.iter().any(|pattern| !self.watches_some_of(pattern)),
            &["unordered", "watch"],
            "names collections that watch does not cover; add them to watch, or remove them here",
        );
        problems.add_if(
            self.dead_blocks.iter().any(|pattern| !self.watches_some_of(pattern)),
            &["dead_blocks", "watch"],
            "names collections that watch does not cover; add them to watch, or remove them here",
        );
        problems.add_if(
            NamespacePattern::any_overlap(&self.dead_blocks, &self.unordered),
            &["dead_blocks", "unordered"],
            "names collections that are also in unordered; without an order no message can block another, \
             so remove them from one of the two settings",
        );

        // A pattern that an earlier pattern covers completely would never apply, which can't be
        // intended.
        if let Some((pattern, by)) = covered(&self.watch) {
            let sentence = format!(
                "has {pattern} after {by}, although {by} covers {pattern} completely; put {pattern} first, or \
                 remove {pattern}"
            );
            problems.add(&["watch"], sentence);
        }
    }

    fn check_delays(&self, problems: &mut InvalidSettings) {
        let delays = SHORTEST_DELAY..=LONGEST_DELAY;
        problems.add_if(
            self.watch.iter().filter_map(NamespacePattern::delay).any(|delay| !delays.contains(&delay)),
            &["watch"],
            "has a delay that is not from 1s to 24h",
        );
        problems.add_if(
            self.unordered.iter().chain(&self.dead_blocks).any(|pattern| pattern.delay().is_some()),
            &["unordered", "dead_blocks"],
            "has a pattern with a delay; delays belong in watch, so remove the delay here",
        );
        problems.add_if(self.stream.is_empty(), &["stream"], "is empty; give the stream a name");
        problems.add_if(!delays.contains(&self.delay), &["delay"], "must be from 1s to 24h");
    }

    fn check_times_and_sizes(&self, problems: &mut InvalidSettings) {
        problems.add_if(
            !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&self.ownership_lease),
            &["ownership_lease"],
            "must be from 1s to 10min",
        );
        problems.add_if(self.sweep_interval.is_zero(), &["sweep_interval"], "must be more than zero");
        problems.add_if(
            self.full_sweep_interval < self.sweep_interval,
            &["full_sweep_interval", "sweep_interval"],
            "must not be shorter than sweep_interval; lengthen full_sweep_interval",
        );
        problems.add_if(
            self.sweep_queries_per_second == 0,
            &["sweep_queries_per_second"],
            "must be at least 1, or no collection would be swept",
        );
        problems.add_if(self.totals_interval.is_zero(), &["totals_interval"], "must be more than zero");
        problems.add_if(
            !(1..=LARGEST_PAGE).contains(&self.page_size),
            &["page_size"],
            "must be from 1 to 10000",
        );
        problems.add_if(
            self.cursor_idle_limit.is_zero() || self.cursor_idle_limit > LONGEST_CURSOR_IDLE,
            &["cursor_idle_limit"],
            "must be more than zero and at most 9min, because the server drops an idle cursor after 10",
        );
    }

    /// Whether the messages of a document in this collection are delivered in order.
    #[must_use]
    pub fn ordering(&self, namespace: &Namespace) -> DeliveryOrder {
        let among = |patterns| NamespacePattern::any_matches(patterns, &namespace.db, &namespace.coll);
        if among(&self.unordered) {
            DeliveryOrder::Unordered
        } else if among(&self.dead_blocks) {
            DeliveryOrder::DeadBlocks
        } else {
            DeliveryOrder::Ordered
        }
    }

    fn watches_some_of(&self, pattern: &NamespacePattern) -> bool {
        self.watch.iter().any(|watched| watched.overlaps(pattern))
    }
}

/// The first pattern that never applies, and the earlier pattern that covers it.
fn covered(watch: &[NamespacePattern]) -> Option<(&NamespacePattern, &NamespacePattern)> {
    for (at, pattern) in watch.iter().enumerate() {
        if let Some(earlier) = watch[..at].iter().find(|earlier| earlier.covers(pattern)) {
            return Some((pattern, earlier));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use outbox_service::SettingsProblem;

    use super::*;

    fn watching(patterns: &[&str]) -> Settings {
        Settings::new(patterns.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn problems(settings: &Settings) -> Vec<SettingsProblem> {
        settings.validate().err().unwrap_or_default().0
    }

    #[test]
    fn the_defaults_have_no_problem() {
        assert_eq!(watching(&["shop.*", "stock.items"]).validate(), Ok(()));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let mut settings = watching(&["document_outbox.*"]);
        settings.delay = Duration::from_millis(999);
        settings.sweep_interval = Duration::ZERO;
        settings.page_size = 0;
        settings.cursor_idle_limit = Duration::from_mins(10);
        settings.unordered = vec!["shop.orders".parse().unwrap()];
        settings.dead_blocks = vec!["shop.*".parse().unwrap()];
        let about: Vec<_> = problems(&settings).into_iter().map(|problem| problem.settings[0]).collect();
        assert_eq!(
            about,
            [
                "watch",
                "unordered",
                "dead_blocks",
                "dead_blocks",
                "delay",
                "sweep_interval",
                "page_size",
                "cursor_idle_limit"
            ]
        );
    }

    #[test]
    fn patterns_that_cannot_work_together_are_reported() {
        let told = |patterns: &[&str]| {
            let problems = problems(&watching(patterns));
            problems.into_iter().map(|problem| problem.sentence).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(told(&["shop.orders@2s", "shop.*", "*.orders@1h"]), "");
        assert!(told(&["shop.*", "shop.orders@2s"]).contains("has shop.orders@2s after shop.*"));
        assert!(told(&["shop.*@20ms"]).contains("from 1s to 24h"));
        let mut settings = watching(&["shop.*@2s"]);
        settings.unordered = vec!["shop.orders@2s".parse().unwrap()];
        assert!(problems(&settings)[0].sentence.contains("delays belong in watch"));
    }

    #[test]
    fn a_collection_keeps_its_order_as_the_patterns_say() {
        let mut settings = watching(&["shop.*"]);
        settings.unordered = vec!["shop.mails".parse().unwrap()];
        settings.dead_blocks = vec!["shop.payments".parse().unwrap()];
        let ordering = |name: &str| settings.ordering(&Namespace::new("shop", name));
        assert_eq!(ordering("mails"), DeliveryOrder::Unordered);
        assert_eq!(ordering("payments"), DeliveryOrder::DeadBlocks);
        assert_eq!(ordering("orders"), DeliveryOrder::Ordered);
        assert_eq!(settings.validate(), Ok(()));
    }

    #[test]
    fn a_pattern_that_never_counts_is_found() {
        let find = |watch: &[&str]| {
            let settings = watching(watch);
            covered(&settings.watch).map(|(pattern, by)| (pattern.to_string(), by.to_string()))
        };
        assert_eq!(find(&["shop.*", "shop.orders@2s"]), Some(("shop.orders@2s".into(), "shop.*".into())));
        assert_eq!(find(&["shop.orders@2s", "shop.*"]), None);
    }
}

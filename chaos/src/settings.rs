//! The settings of a run. The durations are shorter than in production, so that a run takes seconds instead of minutes. The
//! report lists all these settings.

use std::time::Duration;

/// How old a message must be before the rescuer's stream checks it.
pub(crate) const DELAY: Duration = Duration::from_secs(5);
/// How long an application's claim holds. It is shorter than `DELAY`, as the documentation requires.
pub(crate) const INLINE_LEASE: Duration = Duration::from_secs(4);
/// How long a dispatcher's claim holds. No other claim of a run holds longer.
pub(crate) const CLAIM_LEASE: Duration = Duration::from_secs(6);
/// How long an application with deferred clears may leave delivered messages in their document.
pub(crate) const DEFERRED_CLEARS: Duration = Duration::from_millis(300);
/// The pause between two sweeps.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The pause between two sweeps that include entries without a date.
pub(crate) const FULL_SWEEP_INTERVAL: Duration = Duration::from_secs(3);
/// How long a rescuer owns a stream without renewing its lease.
pub(crate) const RESCUER_LEASE: Duration = Duration::from_secs(3);
/// How long the sweep waits before it queues a second command for a document that has not changed. Before further commands for
/// the document, the sweep waits longer.
pub(crate) const REQUEUE_PAUSE: Duration = Duration::from_millis(500);
/// Number of failed attempts after which a message is dead.
pub(crate) const MAX_ATTEMPTS: u32 = 5;
/// The longest wait after the first failed attempt.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest wait after any failed attempt.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long an application waits for RabbitMQ's confirms of the messages that it published together.
pub(crate) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// The AMQP heartbeat in seconds; a connection that is silent for twice this long is dead.
pub(crate) const HEARTBEAT_SECONDS: u16 = 4;
/// How often a driver checks the state of each MongoDB server. The driver accepts no shorter interval.
pub(crate) const MONGODB_HEARTBEAT: Duration = Duration::from_millis(500);

/// How long a storm of faults lasts.
pub(crate) const STORM: Duration = Duration::from_secs(15);
/// How long all outboxes may take to become empty after every server was healed.
///
/// Promise P5 allows delay + longest claim + sweep interval + time in the queue. This constant adds the times that P5 exempts or
/// does not name: the backoff of a message that failed, the pause before the sweep queues another command for an unchanged
/// document, and the time that processes need to connect again. The pause doubles with each command and can become as long as the
/// storm.
pub(crate) const DRAIN: Duration = Duration::from_mins(1);

/// The lateness that promise P5 allows, without the time in the queue.
pub(crate) const fn promised_lateness() -> Duration {
    Duration::from_millis((DELAY.as_millis() + CLAIM_LEASE.as_millis() + SWEEP_INTERVAL.as_millis()) as u64)
}

/// The names and values of all settings, for the report.
pub(crate) fn table() -> Vec<(&'static str, String)> {
    let shown = |duration: Duration| format!("{duration:?}");
    vec![
        ("delay", shown(DELAY)),
        ("inline lease", shown(INLINE_LEASE)),
        ("claim_lease", shown(CLAIM_LEASE)),
        ("defer_clears, of one application", shown(DEFERRED_CLEARS)),
        ("sweep_interval", shown(SWEEP_INTERVAL)),
        ("full_sweep_interval", shown(FULL_SWEEP_INTERVAL)),
        ("lease of the rescuers", shown(RESCUER_LEASE)),
        ("requeue_pause", shown(REQUEUE_PAUSE)),
        ("max_attempts", MAX_ATTEMPTS.to_string()),
        ("backoff_min, backoff_max", format!("{BACKOFF_MIN:?}, {BACKOFF_MAX:?}")),
        ("confirm_timeout of the applications", shown(CONFIRM_TIMEOUT)),
        ("AMQP heartbeat", format!("{HEARTBEAT_SECONDS}s")),
        ("heartbeatFrequencyMS of the drivers", MONGODB_HEARTBEAT.as_millis().to_string()),
        ("length of a storm", shown(STORM)),
        ("P5 without the queue", shown(promised_lateness())),
        ("longest drain", shown(DRAIN)),
    ]
}

//! The settings of a run, shortened so that minutes of a real system pass in seconds. The report states them.

use std::time::Duration;

/// How old a message must be before the rescuer's stream checks it.
pub(crate) const DELAY: Duration = Duration::from_secs(5);
/// How long an application's claim holds: shorter than the delay, as the documentation asks.
pub(crate) const INLINE_LEASE: Duration = Duration::from_secs(4);
/// How long a dispatcher's claim holds. The longest live claim.
pub(crate) const CLAIM_LEASE: Duration = Duration::from_secs(6);
/// How long an application with deferred clears may leave delivered messages where they are.
pub(crate) const DEFERRED_CLEARS: Duration = Duration::from_millis(300);
/// The pause between two sweeps.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The pause between two sweeps that include entries without a date.
pub(crate) const FULL_SWEEP_INTERVAL: Duration = Duration::from_secs(3);
/// How long a rescuer owns a stream.
pub(crate) const RESCUER_LEASE: Duration = Duration::from_secs(3);
/// How long the sweep waits before it queues an unchanged document again, the first time.
pub(crate) const REQUEUE_PAUSE: Duration = Duration::from_millis(500);
/// Failed attempts until a message is dead.
pub(crate) const MAX_ATTEMPTS: u32 = 5;
/// The longest wait after the first failed attempt.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest wait after any failed attempt.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long an application waits for the confirms of a window.
pub(crate) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// An AMQP connection silent for twice this long is dead, in seconds.
pub(crate) const HEARTBEAT_SECONDS: u16 = 4;
/// How often a driver asks each MongoDB server how it is. The least that it takes.
pub(crate) const MONGODB_HEARTBEAT: Duration = Duration::from_millis(500);

/// How long faults rage.
pub(crate) const STORM: Duration = Duration::from_secs(15);
/// How long everything may take to be empty once every server is whole again.
///
/// The promise is delay + longest claim + sweep interval + queue. To that come what the promise exempts or doesn't name: the
/// backoff of a message that failed, the pause before an unchanged document is queued again, which doubles up to the
/// length of the storm, and the new connections of all processes.
pub(crate) const DRAIN: Duration = Duration::from_mins(1);

/// The part of the drain that P5 names, without the queue.
pub(crate) const fn promised_lateness() -> Duration {
    Duration::from_millis((DELAY.as_millis() + CLAIM_LEASE.as_millis() + SWEEP_INTERVAL.as_millis()) as u64)
}

/// All of them with what they are set to, for the report.
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

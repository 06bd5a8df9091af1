//! Time in ticks of ten seconds, and the conversion of ticks to the types that the library and the rescuer use.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use mongodb::bson::DateTime;

/// A moment, as the number of ticks since the beginning.
pub type Tick = u8;

/// The duration of one tick.
pub const TICK: Duration = Duration::from_secs(10);
/// The delay of the rescuer: how old an undelivered message must be before the rescuer queues a command for it.
pub const DELAY: Tick = 1;
/// How long an inline claim lasts.
pub const INLINE_LEASE: Tick = 1;
/// How long a worker's claim lasts.
pub const CLAIM_LEASE: Tick = 2;
/// How long the lease on a stream lasts before its owner must renew it.
pub const OWNERSHIP_LEASE: Tick = 2;
/// How long the sweep waits before it queues a second command for a document whose state has not changed.
pub const REQUEUE_PAUSE: Tick = 1;

const BEGINNING: i64 = 1_700_000_000_000;

/// Converts a moment to a date of the server.
pub fn at(tick: Tick) -> DateTime {
    DateTime::from_millis(BEGINNING + i64::from(tick) * 10_000)
}

/// Converts a date of the server to a moment.
pub fn tick_of(date: DateTime) -> Tick {
    let ticks = (date.timestamp_millis() - BEGINNING).div_euclid(10_000);
    Tick::try_from(ticks).unwrap_or(0)
}

/// Converts a moment to the time on a process's own clock.
pub fn instant(tick: Tick) -> Instant {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    *BEGAN.get_or_init(Instant::now) + ticks(tick)
}

/// The duration of a number of ticks.
pub fn ticks(count: Tick) -> Duration {
    TICK * u32::from(count)
}

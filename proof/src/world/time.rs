//! Time in ticks of ten seconds, and as the code knows it.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use mongodb::bson::DateTime;

/// A moment.
pub type Tick = u8;

/// What passes in one tick.
pub const TICK: Duration = Duration::from_secs(10);
/// Of the rescuer.
pub const DELAY: Tick = 1;
/// How long an inline claim lasts.
pub const INLINE_LEASE: Tick = 1;
/// How long a worker's claim lasts.
pub const CLAIM_LEASE: Tick = 2;
/// How long a rescuer owns a stream at a time.
pub const OWNERSHIP_LEASE: Tick = 2;
/// How long the sweep waits at first before it queues the same state again.
pub const REQUEUE_PAUSE: Tick = 1;

const BEGINNING: i64 = 1_700_000_000_000;

/// A moment as a date of the server.
pub fn at(tick: Tick) -> DateTime {
    DateTime::from_millis(BEGINNING + i64::from(tick) * 10_000)
}

/// The moment of a date.
pub fn tick_of(date: DateTime) -> Tick {
    let ticks = (date.timestamp_millis() - BEGINNING).div_euclid(10_000);
    Tick::try_from(ticks).unwrap_or(0)
}

/// A moment by a process's own clock.
pub fn instant(tick: Tick) -> Instant {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    *BEGAN.get_or_init(Instant::now) + ticks(tick)
}

/// A number of ticks.
pub fn ticks(count: Tick) -> Duration {
    TICK * u32::from(count)
}

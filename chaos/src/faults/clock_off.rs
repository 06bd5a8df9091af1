//! A fault that sets the date of one process ahead or behind. The monotonic clock of the process stays correct, because an
//! operator who sets the date does not change that clock either.

use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use mongodb::bson::DateTime;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope, any};
use crate::{
    actors::Role,
    process::has_clocks,
    system::{Participant, System},
};

pub(super) struct ClockOff;

#[async_trait(?Send)]
impl Fault for ClockOff {
    fn name(&self) -> &'static str {
        "clock of one process off"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let mut random = blow.random();
        let participant = any(system, &mut random);
        if !has_clocks() {
            return Ok(Effect::new(participant.name(), false, "libfaketime is not installed"));
        }
        let size = [2, 5, 30, 600, 7_200][random.usize(0..5)];
        let seconds = if random.bool() { size } else { -size };

        let begun = Instant::now();
        participant.process.set_clock(seconds)?;
        sleep(blow.length.max(Duration::from_millis(1_500))).await;
        let off = clock_of(participant, system, begun + Duration::from_millis(200)).await;
        participant.process.set_clock(0)?;
        let is_off = off.is_some_and(|off| (off / 1_000 - seconds).abs() <= 2);
        Ok(Effect::new(participant.name(), is_off, format!("set off by {seconds} s, seen {off:?} ms")))
    }
}

/// Returns the error, in milliseconds, of the date that a process reports.
async fn clock_of(participant: &Participant, system: &System, since: Instant) -> Option<i64> {
    if participant.role == Role::Application {
        return system.ledger.clock_of(participant.name(), since);
    }
    let answer = participant.get("/livez").await.ok()?;
    let date = answer.lines().find_map(|line| line.strip_prefix("date: "))?;
    let parsed = parse_http_date(date.trim())?;
    Some(parsed - DateTime::now().timestamp_millis())
}

/// Converts a date such as `Thu, 26 Nov 2026 17:00:00 GMT` to milliseconds.
fn parse_http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split([' ', ',']).filter(|word| !word.is_empty()).skip(1);
    let day = words.next()?;
    let month = MONTHS.iter().position(|name| Some(*name) == words.clone().next())? + 1;
    let year = words.nth(1)?;
    let time = words.next()?;
    DateTime::parse_rfc3339_str(format!("{year}-{month:02}-{day}T{time}Z"))
        .ok()
        .map(DateTime::timestamp_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_read() {
        let date = DateTime::parse_rfc3339_str("2026-11-06T17:00:01Z").unwrap();

        assert_eq!(parse_http_date("Fri, 06 Nov 2026 17:00:01 GMT"), Some(date.timestamp_millis()));
        assert_eq!(parse_http_date("yesterday"), None);
    }
}

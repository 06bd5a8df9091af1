//! How values are written for people and for machines: dates, durations, BSON.

use std::time::Duration;

use document_outbox::internal::{canonical, rfc3339};
use mongodb::{
    Namespace,
    bson::{Bson, DateTime},
};
use serde::{Serialize, Serializer};

/// A date as RFC 3339 in UTC; outside the years 0 to 9999, the milliseconds since 1970.
pub fn date(date: DateTime) -> String {
    rfc3339(date).unwrap_or_else(|| date.timestamp_millis().to_string())
}

/// A duration with one or two units: `850ms`, `4.2s`, `3m12s`, `5h07m`, `12d03h`.
pub fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = duration.as_secs();
    if millis < 1_000 {
        format!("{millis}ms")
    } else if seconds < 10 {
        format!("{}.{}s", seconds, millis % 1_000 / 100)
    } else if seconds < 60 {
        format!("{seconds}s")
    } else if seconds < 3_600 {
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    } else if seconds < 86_400 {
        format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60)
    } else {
        format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600)
    }
}

/// The time since a date, or zero if the date is in the future.
pub fn since(now: DateTime, date: DateTime) -> Duration {
    let millis = now.timestamp_millis().saturating_sub(date.timestamp_millis());
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// A date in relation to now: `3m12s ago`, `in 45s`, `now`.
pub fn relative(now: DateTime, date: DateTime) -> String {
    let (ago, ahead) = (since(now, date), since(date, now));
    if ago.is_zero() && ahead.is_zero() {
        "now".to_owned()
    } else if ahead.is_zero() {
        format!("{} ago", duration(ago))
    } else {
        format!("in {}", duration(ahead))
    }
}

/// A BSON value as canonical extended JSON, which shows every type.
pub fn exact(value: &Bson) -> serde_json::Value {
    canonical(value).unwrap_or_else(|_| serde_json::Value::String(value.to_string()))
}

#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn as_rfc3339<S: Serializer>(value: &Option<DateTime>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(date).serialize(serializer)
}

pub(crate) fn as_text<S: Serializer>(value: &Namespace, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn as_millis<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_at_most_two_units() {
        for (millis, text) in [
            (0, "0ms"),
            (850, "850ms"),
            (4_250, "4.2s"),
            (59_999, "59s"),
            (192_000, "3m12s"),
            (18_420_000, "5h07m"),
            (1_047_600_000, "12d03h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn dates_are_relative_to_now() {
        let at = DateTime::from_millis;
        assert_eq!(relative(at(200_000), at(8_000)), "3m12s ago");
        assert_eq!(relative(at(8_000), at(53_000)), "in 45s");
        assert_eq!(relative(at(8_000), at(8_000)), "now");
    }
}

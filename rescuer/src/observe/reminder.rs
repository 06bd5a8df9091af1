//! Repeats a lasting problem in the log at long intervals.

use std::time::{Duration, Instant};

/// The interval at which a lasting problem is logged.
const REMIND: Duration = Duration::from_mins(1);

/// The time when a problem was last logged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reminder(Option<Instant>);

impl Reminder {
    /// Whether to log the problem now: the first time, and then once a minute.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|logged| logged.elapsed() >= REMIND);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_trouble_is_logged_once_a_minute() {
        let mut reminder = Reminder::default();
        assert!(reminder.is_due());
        assert!(!reminder.is_due());
        reminder.0 = Instant::now().checked_sub(REMIND);
        assert!(reminder.is_due());
    }
}

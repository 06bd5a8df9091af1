//! Distinguishes an idle consumer from one that the broker has forgotten.

/// The broker's answer about a queue.
pub(super) struct QueueStatus {
    pub(super) waiting: u32,
    pub(super) consumers: u32,
}

/// Distinguishes an idle consumer from one that the broker has forgotten.
#[derive(Default)]
pub(super) struct Watchdog {
    /// Whether the queue delivers to only one consumer at a time. If so, the other consumers see waiting messages but
    /// get none of them.
    may_stand_by: bool,
    suspicious: bool,
    delivered: bool,
}

impl Watchdog {
    pub(super) fn new(may_stand_by: bool) -> Self {
        Self { may_stand_by, ..Self::default() }
    }

    pub(super) fn delivered(&mut self) {
        self.delivered = true;
    }

    /// Makes one check, and returns an error if the broker has forgotten the consumer. Two checks in a row must find
    /// waiting messages, because at the first check the messages may still be in flight.
    pub(super) fn check(&mut self, status: &QueueStatus, held: usize) -> Result<(), String> {
        let silent = !std::mem::take(&mut self.delivered);
        if status.consumers == 0 && silent {
            return Err("RabbitMQ no longer has the consumer".to_owned());
        }
        let suspicious = silent && held == 0 && status.waiting > 0 && !self.may_stand_by;
        if std::mem::replace(&mut self.suspicious, suspicious) && suspicious {
            return Err(format!("{} messages are waiting, but RabbitMQ delivers none", status.waiting));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(waiting: u32, consumers: u32) -> QueueStatus {
        QueueStatus { waiting, consumers }
    }

    #[test]
    fn two_idle_checks_of_a_backlog_raise_suspicion() {
        let mut watchdog = Watchdog::default();
        assert!(watchdog.check(&status(5, 1), 0).is_ok());
        assert!(watchdog.check(&status(5, 1), 0).is_err());
    }

    #[test]
    fn a_standby_may_see_a_backlog() {
        let mut watchdog = Watchdog::new(true);
        assert!((0..3).all(|_| watchdog.check(&status(5, 2), 0).is_ok()));
        assert!(watchdog.check(&status(5, 0), 0).is_err(), "the broker has forgotten it");
    }

    #[test]
    fn deliveries_held_messages_and_empty_queues_clear_suspicion() {
        let mut watchdog = Watchdog::default();
        assert!(watchdog.check(&status(5, 1), 0).is_ok());
        watchdog.delivered();
        assert!(watchdog.check(&status(5, 1), 0).is_ok());
        assert!(watchdog.check(&status(5, 1), 0).is_ok());
        assert!(watchdog.check(&status(5, 1), 1).is_ok());
        assert!(watchdog.check(&status(5, 1), 0).is_ok());
        assert!(watchdog.check(&status(0, 1), 0).is_ok());
        assert!(watchdog.check(&status(5, 1), 0).is_ok());
    }

    #[test]
    fn an_unknown_consumer_is_dropped_at_the_first_check() {
        assert!(Watchdog::default().check(&status(0, 0), 0).is_err());
    }
}

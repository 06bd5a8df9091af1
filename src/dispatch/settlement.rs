//! Decides what happens to a message after a delivery attempt. The writes that carry out the decision are elsewhere.

use std::time::Duration;

use crate::{
    deliver::Outcome,
    dispatch::retry::RetryPolicy,
    stored::entry::{DeadReason, Entry},
};

/// How a message is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The message was delivered and is removed from the outbox.
    Clear,
    /// The attempt failed and is counted; the next attempt is due after a wait.
    Fail {
        /// The wait before the next attempt.
        after: Duration,
        /// The error.
        error: String,
    },
    /// The message is dead and stays in the outbox for an operator.
    Die {
        /// The reason for giving up.
        reason: DeadReason,
        /// The error.
        error: String,
    },
    /// The message is released and due at once; no attempt is counted.
    Release {
        /// The reason why the message can't be delivered now.
        why: String,
    },
}

/// Decides how a message is settled, from the outcome, the earlier attempts, and the policy. Only the jitter of the
/// backoff is random.
pub fn settlement(outcome: Outcome, entry: &Entry, policy: &RetryPolicy) -> Settlement {
    let attempts = entry.attempts + 1;
    match outcome {
        Outcome::Delivered => Settlement::Clear,
        Outcome::Unavailable(why) => Settlement::Release { why },
        Outcome::Permanent(error) => Settlement::Die { reason: DeadReason::Permanent, error },
        Outcome::Transient(error) | Outcome::Unroutable(error)
            if attempts < i64::from(policy.max_attempts) =>
        {
            let after = policy.backoff(u32::try_from(attempts).unwrap_or(1));
            Settlement::Fail { after, error }
        }
        Outcome::Transient(error) | Outcome::Unroutable(error) => {
            Settlement::Die { reason: DeadReason::AttemptsExhausted, error }
        }
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, Uuid, doc};

    use super::*;
    use crate::stored::entry::{Slot, read_outbox};

    fn settle(outcome: Outcome, attempts: i64) -> Settlement {
        let entry = doc! { "id": Uuid::new(), "type": "t", "attempts": attempts };
        let mut slots = read_outbox(Some(&Bson::from(vec![entry]))).unwrap_or_default();
        let Some(Slot::Entry(entry)) = slots.pop() else { panic!("no entry") };
        let policy = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
        settlement(outcome, &entry, &policy)
    }

    #[test]
    fn a_transient_failure_dies_at_the_last_attempt() {
        let failure = || Outcome::Transient("no".into());
        for attempts in [0, 1] {
            let Settlement::Fail { after, .. } = settle(failure(), attempts) else { panic!("{attempts}") };
            let ceiling = RetryPolicy::default().backoff_ceiling(u32::try_from(attempts).unwrap() + 1);
            assert!(after <= ceiling && !after.is_zero(), "{after:?} of {ceiling:?}");
        }
        let dead = Settlement::Die { reason: DeadReason::AttemptsExhausted, error: "no".into() };
        assert_eq!(settle(failure(), 2), dead);
        assert_eq!(settle(failure(), i64::from(i32::MAX)), dead);
    }

    #[test]
    fn only_failures_of_the_message_count() {
        assert_eq!(settle(Outcome::Delivered, 9), Settlement::Clear);
        assert_eq!(
            settle(Outcome::Unavailable("away".into()), 9),
            Settlement::Release { why: "away".into() }
        );
        let dead = Settlement::Die { reason: DeadReason::Permanent, error: "never".into() };
        assert_eq!(settle(Outcome::Permanent("never".into()), 0), dead);
    }
}

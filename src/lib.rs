//! Document outbox.

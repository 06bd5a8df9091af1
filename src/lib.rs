//! Document outbox.

pub mod amqp;

//! Replaces the command sender in a build without RabbitMQ, with a type that can't be constructed.

use std::convert::Infallible;

use super::ProcessDocumentMessages;

pub(crate) use self::NoSender as CommandSender;

#[derive(Debug, Clone)]
pub(crate) enum NoSender {}

impl NoSender {
    #[allow(clippy::unused_async, reason = "awaited like the sender that it replaces")]
    pub(crate) async fn send(&self, _: Vec<ProcessDocumentMessages>) -> Vec<Result<(), Infallible>> {
        match *self {}
    }
}

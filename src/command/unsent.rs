//! What stands for the sender of commands in a build without RabbitMQ: there is none, and none can be made.

use std::convert::Infallible;

use super::ProcessDocumentMessages;

pub(crate) use self::NoSender as CommandSender;

#[derive(Debug, Clone)]
pub(crate) enum NoSender {}

impl NoSender {
    pub(crate) async fn send(&self, _: Vec<ProcessDocumentMessages>) -> Vec<Result<(), Infallible>> {
        match *self {}
    }
}

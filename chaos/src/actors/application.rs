//! The applications of a storm: one with ordered messages, one with deferred clears, one with unordered messages, one in which a
//! dead message blocks later messages of its document, and one whose collection is dropped and renamed.

use super::{Actor, LOG_FILTER, Placement, Role};
use crate::{
    application::{Job, Order},
    control::Control,
    process::Program,
    proxy::Point,
};

pub(super) struct Application;

impl Actor for Application {
    /// Returns the names of the applications. Each application saves in a collection that has the application's name.
    fn names(&self) -> &'static [&'static str] {
        &["ordered", "deferred", "unordered", "dead_blocks", "moving"]
    }

    fn role(&self) -> Role {
        Role::Application
    }

    fn points(&self) -> &'static [Point] {
        &Point::OF_APPLICATIONS
    }

    fn program(&self, name: &str, placement: &Placement) -> Program {
        let job = Job {
            name: name.to_owned(),
            mongodb: placement.mongodb.clone(),
            rabbitmq: placement.rabbitmq.clone(),
            database: placement.database.clone(),
            state_database: placement.state_database.clone(),
            collection: name.to_owned(),
            messages_exchange: placement.messages_exchange(),
            commands_exchange: placement.commands_exchange(),
            commands_queue: placement.commands_queue(),
            order: match name {
                "unordered" => Order::Unordered,
                "dead_blocks" => Order::DeadBlocks,
                _ => Order::Ordered,
            },
            defers_clears: name == "deferred",
            clears_before_confirm: placement.control == Some(Control::ClearBeforeConfirm),
        };
        let job = serde_json::to_string(&job).unwrap_or_default();
        Program {
            name: name.to_owned(),
            path: placement.binaries.join("outbox-chaos"),
            arguments: vec!["application".to_owned(), job],
            environment: vec![("RUST_LOG".to_owned(), LOG_FILTER.to_owned())],
            folder: placement.folder.clone(),
        }
    }
}

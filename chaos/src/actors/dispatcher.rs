//! Two processes of the real outbox-dispatcher binary.

use super::{Actor, Placement, Role, service_environment};
use crate::{process::Program, proxy::Point, settings};

pub(super) struct Dispatcher;

impl Actor for Dispatcher {
    fn names(&self) -> &'static [&'static str] {
        &["dispatcher-1", "dispatcher-2"]
    }

    fn role(&self) -> Role {
        Role::Dispatcher
    }

    fn points(&self) -> &'static [Point] {
        &Point::OF_DISPATCHERS
    }

    fn program(&self, name: &str, placement: &Placement) -> Program {
        let mut environment = service_environment(placement);
        let millis = |duration: std::time::Duration| format!("{}ms", duration.as_millis());
        let own = [
            ("OUTBOX_CLAIM_LEASE", millis(settings::CLAIM_LEASE)),
            ("OUTBOX_MAX_ATTEMPTS", settings::MAX_ATTEMPTS.to_string()),
            ("OUTBOX_BACKOFF_MIN", millis(settings::BACKOFF_MIN)),
            ("OUTBOX_BACKOFF_MAX", millis(settings::BACKOFF_MAX)),
            ("OUTBOX_MESSAGES_EXCHANGE", placement.messages_exchange()),
        ];
        environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Program {
            name: name.to_owned(),
            path: placement.binaries.join("outbox-dispatcher"),
            arguments: Vec::new(),
            environment,
            folder: placement.folder.clone(),
        }
    }
}

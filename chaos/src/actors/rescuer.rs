//! Two processes of the real outbox-rescuer binary; one owns the streams, and the other stands by.

use super::{Actor, Placement, Role, service_environment};
use crate::{control::Control, process::Program, proxy::Point, settings};

pub(super) struct Rescuer;

impl Actor for Rescuer {
    fn names(&self) -> &'static [&'static str] {
        &["rescuer-1", "rescuer-2"]
    }

    fn role(&self) -> Role {
        Role::Rescuer
    }

    fn points(&self) -> &'static [Point] {
        &Point::OF_RESCUERS
    }

    fn program(&self, name: &str, placement: &Placement) -> Program {
        let mut environment = service_environment(placement);
        let millis = |duration: std::time::Duration| format!("{}ms", duration.as_millis());
        // No setting turns a rescuer's sweep off. To run without a sweep on purpose, the harness sets the pause between two
        // sweeps to 23 hours.
        let has_sweep = placement.control != Some(Control::NoSweep);
        let sweep = if has_sweep { settings::SWEEP_INTERVAL } else { std::time::Duration::from_hours(23) };
        let full = if has_sweep { settings::FULL_SWEEP_INTERVAL } else { sweep };
        let own = [
            ("OUTBOX_DELAY", millis(settings::DELAY)),
            ("OUTBOX_LEASE", millis(settings::RESCUER_LEASE)),
            ("OUTBOX_SWEEP_INTERVAL", millis(sweep)),
            ("OUTBOX_FULL_SWEEP_INTERVAL", millis(full)),
            ("OUTBOX_REQUEUE_PAUSE", millis(settings::REQUEUE_PAUSE)),
            ("OUTBOX_TOTALS_INTERVAL", "2s".to_owned()),
        ];
        environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Program {
            name: name.to_owned(),
            path: placement.binaries.join("outbox-rescuer"),
            arguments: Vec::new(),
            environment,
            folder: placement.folder.clone(),
        }
    }
}

//! The two services that every measurement of a limit runs, with the figures that the measurements have in common.

use super::{backlog::manifest_memory_mib, finding::Finding, received::Received};
use crate::{bed::Bed, result::Result, services::Service};

/// A dispatcher, and a rescuer with a delay of 2 s.
pub(super) struct Services {
    pub(super) rescuer: Service,
    pub(super) dispatcher: Service,
}

impl Services {
    /// Starts both services on the collections of this database, which may be a pattern.
    pub(super) fn start(bed: &Bed, database: &str) -> Result<Self> {
        let dispatcher =
            Service::start(bed, "outbox-dispatcher", database, &[("MESSAGES_EXCHANGE", bed.exchange())])?;
        let rescuer = Service::start(bed, "outbox-rescuer", database, &[("DELAY", "2s".into())])?;
        Ok(Self { rescuer, dispatcher })
    }

    /// Both services with their names.
    pub(super) fn both(&self) -> [(&'static str, &Service); 2] {
        [("rescuer", &self.rescuer), ("dispatcher", &self.dispatcher)]
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.rescuer.stop().await?;
        self.dispatcher.stop().await
    }
}

/// The number of messages that arrived, each of which must have arrived.
pub(super) fn arrived(limit: &'static str, received: &Received, sent: u64) -> Finding {
    let figure = format!("{}, {} of them twice", received.count(), received.repeats());
    Finding::figure(limit, "messages that arrived", figure)
        .bound("each at least once", received.is_exactly(sent))
}

/// The peak memory of a service, which must be below the limit of its manifest.
pub(super) fn peak_memory(limit: &'static str, name: &str, service: &Service) -> Result<Finding> {
    let (peak, most) = (service.peak_memory_mib()?, manifest_memory_mib(name)?);
    let finding =
        Finding::figure(limit, format!("memory of the {name} at its peak"), format!("{peak:.0} MiB"));
    Ok(finding.bound(format!("{most:.0} MiB, of the manifest"), peak < most))
}

//! The faults of a storm. To add a fault, add a file to this folder and a line to [`ALL`].

mod binding_removed;
mod black_hole;
mod channel_closed;
mod clock_off;
mod collection_dropped;
mod collection_renamed;
mod cut_mid_frame;
mod forged_commands;
mod history_lost;
mod hot_document;
mod index_missing;
mod kill;
mod kill_at_point;
mod limit_lowered;
mod majority_late;
mod majority_stalled;
mod memory_alarm;
mod node_killed;
mod oversized_outbox;
mod pause;
mod permission_revoked;
mod primary_killed;
mod queue_removed;
mod slow_link;
mod stepdown;

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;

use crate::system::{Participant, System};

/// A way in which the system can fail, caused on purpose.
#[async_trait(?Send)]
pub(crate) trait Fault: Sync {
    fn name(&self) -> &'static str;

    /// Returns the part of the system that the fault hits. Two faults with the same scope never strike at the same time.
    fn scope(&self) -> Scope;

    /// Causes the fault for about the time `blow.length`, checks that the fault had an effect, and repairs the damage.
    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect>;
}

/// All faults.
pub(crate) const ALL: &[&dyn Fault] = &[
    &kill::Kill,
    &kill_at_point::KillAtPoint,
    &pause::Pause,
    &black_hole::BlackHole,
    &slow_link::SlowLink,
    &cut_mid_frame::CutMidFrame,
    &clock_off::ClockOff,
    &hot_document::HotDocument,
    &stepdown::Stepdown,
    &primary_killed::PrimaryKilled,
    &majority_late::MajorityLate,
    &majority_stalled::MajorityStalled,
    &node_killed::NodeKilled,
    &memory_alarm::MemoryAlarm,
    &queue_removed::QueueRemoved,
    &binding_removed::BindingRemoved,
    &channel_closed::ChannelClosed,
    &permission_revoked::PermissionRevoked,
    &limit_lowered::LimitLowered,
    &history_lost::HistoryLost,
    &collection_dropped::CollectionDropped,
    &collection_renamed::CollectionRenamed,
    &index_missing::IndexMissing,
    &forged_commands::ForgedCommands,
    &oversized_outbox::OversizedOutbox,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// One process of the system.
    Process,
    /// The MongoDB servers.
    Mongo,
    /// The RabbitMQ nodes.
    Broker,
    /// The stored data.
    Data,
}

/// The parameters of one strike of a fault. They are drawn before the storm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blow {
    pub(crate) length: Duration,
    /// The seed from which the fault draws all other random choices.
    pub(crate) seed: u64,
}

/// The outcome of one strike of a fault.
#[derive(Debug)]
pub(crate) struct Effect {
    /// The name of the process, server or collection that the fault hit.
    pub(crate) target: String,
    /// Whether the harness saw an effect of the fault.
    pub(crate) took: bool,
    pub(crate) evidence: String,
}

impl Effect {
    pub(crate) fn new(target: impl Into<String>, took: bool, evidence: impl Into<String>) -> Self {
        Self { target: target.into(), took, evidence: evidence.into() }
    }
}

impl Blow {
    fn random(self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }
}

/// Chooses one of all processes at random.
fn any<'a>(system: &'a System, random: &mut fastrand::Rng) -> &'a Participant {
    &system.participants[random.usize(0..system.participants.len())]
}

//! The scenarios. Each scenario combines some of the actors with some of the faults.

use document_outbox::DeliveryOrder::{self, DeadBlocks, Ordered, Unordered};

use crate::{
    actors::{
        network::Network,
        receiver::Receiver,
        replica_set::ReplicaSet,
        rescuer::Rescuer,
        saver::Saver,
        stranger::{Dated, Stranger},
        waker::Waker,
        worker::Worker,
    },
    faults::{
        answer_lost::AnswerLost, commands_lost::CommandsLost, connection_cut::ConnectionCut, crash::Crash,
        failover::Failover, gives_up::GivesUp, position_lost::PositionLost, refused::Refused,
    },
    scenario::Scenario,
    world::Fate,
};

/// How far the searches go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounds {
    /// Bounds so small that all searches together take less than a minute.
    Short,
    /// Bounds with one more fault than `Short` in each scenario that has faults.
    Deep,
}

/// The scenarios in which every law must hold.
pub fn all(bounds: Bounds) -> Vec<Scenario> {
    vec![
        saving(bounds),
        delivering(bounds),
        cutting(bounds),
        deferring(bounds),
        failing(bounds, "failing: refused", Fate::RefusedOnce, Ordered),
        failing(bounds, "failing: unroutable", Fate::Unroutable, Unordered),
        failing(bounds, "failing: impossible", Fate::Impossible, Ordered),
        failing(bounds, "failing: dead blocks", Fate::Impossible, DeadBlocks),
        rescuing(bounds),
        owning(bounds),
        losing_positions(bounds),
        receiving(bounds),
        untroubled(bounds),
    ]
}

/// Returns `least`, or one more than `least` for a deep search.
fn more(bounds: Bounds, least: u8) -> u8 {
    if bounds == Bounds::Deep { least + 1 } else { least }
}

/// Two applications save one document while answers are lost, saves are refused, deadlines pass, and the primary changes.
pub fn saving(bounds: Bounds) -> Scenario {
    Scenario::new("saving")
        .documents([Ordered])
        .lagging()
        .with(ReplicaSet)
        .with(Saver::new([(0, 0)]))
        .with(Saver::new([(0, 1)]))
        .with(Rescuer::from(1))
        .with(Worker::default())
        .fault(AnswerLost)
        .fault(Refused)
        .fault(GivesUp)
        .fault(Failover)
        .strikes(more(bounds, 2))
        .until(0)
}

/// Two workers, which may be killed, deliver the messages of one document at the same time.
pub fn delivering(bounds: Bounds) -> Scenario {
    Scenario::new("delivering")
        .documents([Ordered])
        .with(Stranger::new([(0, 0, Dated::Now), (0, 1, Dated::Now)]))
        .with(Waker::new(0, 2))
        .with(Rescuer::from(2))
        .with(Worker::default())
        .with(Worker::default())
        .fault(Crash)
        .strikes(more(bounds, 1))
        .until(1)
}

/// A saver and a worker lose their connections to the broker.
pub fn cutting(bounds: Bounds) -> Scenario {
    Scenario::new("cutting connections")
        .documents([Ordered])
        .with(Network)
        .with(Saver::new([(0, 0), (0, 1)]))
        .with(Waker::new(0, 1))
        .with(Rescuer::from(2))
        .with(Worker::default())
        .fault(ConnectionCut)
        .fault(Crash)
        .strikes(more(bounds, 1))
        .until(1)
}

/// An application leaves delivered messages in their document until its next save, while another program writes to the document.
pub fn deferring(bounds: Bounds) -> Scenario {
    Scenario::new("deferring clears")
        .documents([Ordered])
        .lagging()
        .defers_clears()
        .with(ReplicaSet)
        .with(Saver::new([(0, 0), (0, 1)]))
        .with(Stranger::new([(0, 2, Dated::Now)]))
        .with(Rescuer::from(2))
        .with(Worker::default())
        .fault(Crash)
        .fault(Failover)
        .strikes(more(bounds, 1))
        .until(1)
}

/// The first message fails: it is refused once, is unroutable, or can never be published.
pub fn failing(bounds: Bounds, name: &'static str, fate: Fate, order: DeliveryOrder) -> Scenario {
    Scenario::new(name)
        .documents([order])
        .with(Stranger::new([(0, 0, Dated::Undated), (0, 1, Dated::Undated)]))
        .with(Rescuer::default())
        .with(Worker::default())
        .fates([fate, Fate::Good])
        .fault(Crash)
        .strikes(more(bounds, 1))
        .until(1)
}

/// Another program pushes two messages: one without a date, and one that is due later. A rescuer and a worker deliver both
/// messages.
pub fn rescuing(bounds: Bounds) -> Scenario {
    Scenario::new("rescuing")
        .documents([Ordered, Unordered])
        .with(Stranger::new([(0, 0, Dated::Undated), (1, 1, Dated::Scheduled(1))]))
        .with(Rescuer::default())
        .with(Worker::default())
        .fault(Crash)
        .fault(CommandsLost)
        .strikes(more(bounds, 1))
        .until(1)
}

/// Two rescuers compete for the stream, and one of them never reaches the broker.
pub fn owning(bounds: Bounds) -> Scenario {
    Scenario::new("owning")
        .documents([Ordered])
        .with(Stranger::new([(0, 0, Dated::Now)]))
        .with(Rescuer::default())
        .with(Rescuer::default())
        .with(Worker::default())
        .without_broker([1])
        .fault(Crash)
        .strikes(more(bounds, 0))
        .until(3)
}

/// The saved position is deleted, or the oplog no longer reaches back to the position.
pub fn losing_positions(bounds: Bounds) -> Scenario {
    Scenario::new("losing positions")
        .documents([Ordered])
        .with(Stranger::new([(0, 0, Dated::Made)]))
        .with(Rescuer::default())
        .with(Worker::default())
        .fault(PositionLost)
        .fault(Crash)
        .strikes(more(bounds, 2))
        .until(1)
}

/// Two receivers, which share one aggregate, get the messages. Some messages arrive more than once.
pub fn receiving(bounds: Bounds) -> Scenario {
    Scenario::new("receiving")
        .documents([Ordered, Ordered])
        .lagging()
        .receivers()
        .with(ReplicaSet)
        .with(Saver::new([(0, 0), (0, 1)]))
        .with(Receiver::new(1))
        .with(Receiver::new(1))
        .with(Rescuer::default())
        .with(Worker::default())
        .fault(Crash)
        .fault(Failover)
        .strikes(more(bounds, 1))
        .until(0)
}

/// No process fails or is slow, so every message must arrive exactly once.
pub fn untroubled(_: Bounds) -> Scenario {
    Scenario::new("untroubled")
        .documents([Ordered, DeadBlocks])
        .lagging()
        .prompt()
        .with(ReplicaSet)
        .with(Saver::new([(0, 0), (1, 1)]))
        .with(Saver::new([(0, 2)]))
        .with(Rescuer::default())
        .with(Worker::default())
        .until(3)
}

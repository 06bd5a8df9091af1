//! A fault after which the rescuer's stream cannot continue from its position: MongoDB reports that the history is lost, or the owner
//! of the stream is killed and its stored position becomes unreadable.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use mongodb::{
    bson::{Document, doc},
    options::WriteConcern,
};

use super::{Blow, Effect, Fault, Scope};
use crate::{
    actors::Role,
    system::{Participant, System},
};

/// The metric in which a rescuer counts lost positions.
const LOSSES: &str = "outbox_positions_lost_total";
/// The code of MongoDB's error `ChangeStreamHistoryLost`.
const LOST: i32 = 286;

pub(super) struct HistoryLost;

#[async_trait(?Send)]
impl Fault for HistoryLost {
    fn name(&self) -> &'static str {
        "history lost"
    }

    fn scope(&self) -> Scope {
        Scope::Data
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let mut before = lost(system).await;
        let (target, evidence) = if blow.random().bool() {
            let primary = system.servers.set.wait_for_primary().await?;
            let command = doc! {
                "configureFailPoint": "failCommand",
                "mode": { "times": 1 },
                "data": { "failCommands": ["getMore"], "errorCode": LOST, "errorLabels": [] },
            };
            system.servers.set.on(primary, command).await?;
            ("rescuers".to_owned(), format!("a getMore was answered with {LOST}"))
        } else {
            let Some(owner) = owner(system).await else {
                return Ok(Effect::new("rescuers", false, "no rescuer owns the stream"));
            };
            // The kill resets the count that this rescuer serves, so the count is subtracted from `before`.
            before -= owner.series(LOSSES).await;
            owner.process.kill();
            let positions = system.state().collection::<Document>("positions");
            let unreadable = doc! { "$set": { "token": { "_data": "8265" } } };
            positions.update_many(doc! {}, unreadable).write_concern(WriteConcern::majority()).await?;
            (owner.name().to_owned(), "its position can't be read".to_owned())
        };

        let is_seen =
            Participant::wait_until(Duration::from_secs(12), async || lost(system).await > before).await;
        Ok(Effect::new(target, is_seen, evidence))
    }
}

async fn owner(system: &System) -> Option<&Participant> {
    for participant in system.of_role(Role::Rescuer) {
        if participant.series("outbox_lease_owner").await > 0.0 {
            return Some(participant);
        }
    }
    None
}

/// Returns the number of lost positions that the running rescuers report. A rescuer that is started again begins at zero.
async fn lost(system: &System) -> f64 {
    let mut lost = 0.0;
    for participant in system.of_role(Role::Rescuer) {
        lost += participant.series(LOSSES).await;
    }
    lost
}

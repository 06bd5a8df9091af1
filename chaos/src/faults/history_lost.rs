//! The stream can't continue where it was: MongoDB says that its history is lost, or the owner dies and leaves an unreadable position.

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

/// What a rescuer counts.
const LOSSES: &str = "outbox_positions_lost_total";
/// `ChangeStreamHistoryLost`.
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
            // Its own count goes with it.
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

/// Positions lost by those who live. One that is killed forgets its own.
async fn lost(system: &System) -> f64 {
    let mut lost = 0.0;
    for participant in system.of_role(Role::Rescuer) {
        lost += participant.series(LOSSES).await;
    }
    lost
}

//! A fault that makes both secondaries apply every write 1 to 10 s late, so that every write that waits for the majority takes 1
//! to 10 s.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::System;

pub(super) struct MajorityLate;

#[async_trait(?Send)]
impl Fault for MajorityLate {
    fn name(&self) -> &'static str {
        "majority late by 1 to 10 s"
    }

    fn scope(&self) -> Scope {
        Scope::Mongo
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let set = &system.servers.set;
        // Short lags are more frequent than long ones; otherwise few saves of a storm would finish.
        let lag = i64::from([1_u8, 1, 2, 2, 3, 4, 5, 7, 10][blow.random().usize(0..9)]);
        set.set_lag(lag).await?;
        let answered = set.majority_answers(Duration::from_secs(15)).await;
        sleep(blow.length).await;
        set.set_lag(0).await?;
        let is_late = answered.is_none_or(|took| took >= Duration::from_millis(500));
        Ok(Effect::new("mongodb", is_late, format!("lag of {lag} s, a majority write took {answered:.1?}")))
    }
}

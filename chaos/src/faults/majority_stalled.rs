//! A fault that stops both secondaries from applying writes for a while. The secondaries still vote, so no other primary is
//! elected.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::system::System;

const FAIL_POINT: &str = "rsSyncApplyStop";

pub(super) struct MajorityStalled;

#[async_trait(?Send)]
impl Fault for MajorityStalled {
    fn name(&self) -> &'static str {
        "majority stalled"
    }

    fn scope(&self) -> Scope {
        Scope::Mongo
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let set = &system.servers.set;
        let secondaries = set.secondaries().await?;
        set.fail_point(&secondaries, FAIL_POINT, true).await?;
        sleep(blow.length / 2).await;
        let answered = set.majority_answers(blow.length / 2 + Duration::from_millis(500)).await;
        set.fail_point(&secondaries, FAIL_POINT, false).await?;
        Ok(Effect::new("mongodb", answered.is_none(), format!("a majority write took {answered:.1?}")))
    }
}

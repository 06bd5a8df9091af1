//! A fault in which several savers of one application save the same document without a pause.

use anyhow::Result;
use async_trait::async_trait;
use tokio::time::sleep;

use super::{Blow, Effect, Fault, Scope};
use crate::{actors::Role, system::System};

/// The fault counts as effective if at least this many saves of the document were made.
const HOT: usize = 10;

pub(super) struct HotDocument;

#[async_trait(?Send)]
impl Fault for HotDocument {
    fn name(&self) -> &'static str {
        "hot document"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    async fn strike(&self, system: &System, blow: Blow) -> Result<Effect> {
        let applications: Vec<_> = system.of_role(Role::Application).collect();
        let participant = applications[blow.random().usize(0..applications.len())];

        let before = system.ledger.saves().len();
        participant.process.order("hot");
        sleep(blow.length.max(std::time::Duration::from_secs(2))).await;
        let prefix = format!("{}-hot-", participant.name());
        let saves = system.ledger.saves();
        let hot = saves[before..].iter().filter(|save| save.document.starts_with(&prefix)).count();
        Ok(Effect::new(participant.name(), hot >= HOT, format!("{hot} saves of one document")))
    }
}

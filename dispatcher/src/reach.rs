//! Whether MongoDB can be reached: asked again and again, also while there is nothing to do.

use std::time::Duration;

use document_outbox::internal::error_codes;
use mongodb::{
    Client,
    bson::doc,
    error::{Error, ErrorKind},
    options::{ReadPreference, SelectionCriteria},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{ability::Ability, cluster::Cluster};

/// Between two questions while it answers.
const EVERY: Duration = Duration::from_secs(5);
/// Between two questions while it doesn't.
const AGAIN: Duration = Duration::from_secs(1);
/// A longer wait for an answer is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether this error says that no server could be worked with, whatever was asked of it.
pub(crate) fn is_away(error: &Error) -> bool {
    matches!(
        error.kind.as_ref(),
        ErrorKind::ServerSelection { .. }
            | ErrorKind::Authentication { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::Shutdown
    )
}

/// Asks MongoDB for ever, and notes how it stands.
pub(crate) async fn watch(client: &Client, cluster: &Cluster, ability: &Ability) {
    loop {
        // A command is not retried by the driver, and one election is no outage.
        let answer = match ask(client, cluster, ability).await {
            Ok(()) => Ok(()),
            Err(_first) => ask(client, cluster, ability).await,
        };
        match answer {
            Ok(()) => {
                if ability.reached() {
                    tracing::info!("MongoDB answers; commands are taken");
                }
                sleep(EVERY).await;
            }
            Err(reason) => {
                note(ability, reason);
                sleep(AGAIN).await;
            }
        }
    }
}

/// Notes that MongoDB is away, and warns when it was not before.
pub(crate) fn note(ability: &Ability, reason: String) {
    if ability.away(reason.clone()) {
        tracing::warn!(reason, "MongoDB cannot be reached; no commands are taken until it answers");
    }
}

async fn ask(client: &Client, cluster: &Cluster, ability: &Ability) -> Result<(), String> {
    let began = Instant::now();
    let asking = async {
        // Claims need the primary.
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        client.database("admin").run_command(doc! { "ping": 1 }).selection_criteria(primary).await?;
        cluster.ask().await
    };
    match timeout(PATIENCE, asking).await {
        Ok(answer) => answer.map_err(|error| error_codes::describe(&error)),
        // It had no connection to spare for the question.
        Err(_elapsed) if ability.worked_since(began) => Ok(()),
        Err(_elapsed) => Err(format!("no answer in {PATIENCE:?}")),
    }
}

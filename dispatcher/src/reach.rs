//! Checks repeatedly whether MongoDB can be reached, even if there is no work.

use std::time::Duration;

use document_outbox::internal::error_codes;
use mongodb::{
    Client,
    bson::doc,
    error::Error,
    options::{ReadPreference, SelectionCriteria},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    ability::{Ability, Change},
    cluster::Cluster,
};

/// The pause between two checks while MongoDB answers.
const EVERY: Duration = Duration::from_secs(5);
/// The pause between two checks while MongoDB doesn't answer.
const AGAIN: Duration = Duration::from_secs(1);
/// The time after which a check counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks MongoDB repeatedly, and records whether it answers.
pub(crate) async fn watch(client: &Client, cluster: &Cluster, ability: &Ability) {
    loop {
        // A failed check is repeated, because the driver does not retry a `ping`, and because one election of
        // a new primary is not an outage.
        let mut answer = ask(client, cluster, ability).await;
        if answer.is_err() {
            answer = ask(client, cluster, ability).await;
        }

        match answer {
            Ok(()) => {
                if ability.reached() == Change::News {
                    tracing::info!("MongoDB answers; this worker takes commands");
                }
                sleep(EVERY).await;
            }
            Err(reason) => {
                note_unreachable(ability, &reason);
                sleep(AGAIN).await;
            }
        }
    }
}

/// Records that MongoDB is unreachable, and warns if MongoDB was reachable before.
pub(crate) fn note_unreachable(ability: &Ability, reason: &str) {
    if ability.away(reason) == Change::News {
        tracing::warn!(
            reason,
            "MongoDB cannot be reached; this worker takes no commands until MongoDB answers"
        );
    }
}

/// Checks that the primary answers, because claims need the primary, and reads the cluster's UUID.
async fn ask(client: &Client, cluster: &Cluster, ability: &Ability) -> Result<(), String> {
    let began = Instant::now();
    match timeout(PATIENCE, ping(client, cluster)).await {
        Ok(answer) => answer.map_err(|error| error_codes::describe(&error)),
        // MongoDB has executed other requests during the check, so the check only found no free connection in
        // the pool.
        Err(_elapsed) if ability.worked_since(began) => Ok(()),
        Err(_elapsed) => Err(format!("there was no answer within {PATIENCE:?}")),
    }
}

async fn ping(client: &Client, cluster: &Cluster) -> Result<(), Error> {
    let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
    client.database("admin").run_command(doc! { "ping": 1 }).selection_criteria(primary).await?;
    cluster.ask().await
}

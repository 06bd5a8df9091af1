//! Checks whether a rescuer can use a server.

use mongodb::bson::{Document, doc};
use tokio_util::sync::CancellationToken;

use crate::{
    classify::{self, Fault},
    error::RescuerError,
    halt::{Interrupted, unless_stopped},
    mongo::Mongo,
    observe::reminder::Reminder,
    pauses::Pauses,
};

const ASKING: &str = "ask MongoDB for its version and kind";

/// Refuses servers that a rescuer cannot use. Waits for a server that doesn't answer.
pub(crate) async fn check(mongo: &Mongo, stop: &CancellationToken) -> Result<(), Interrupted<RescuerError>> {
    let (mut pauses, mut reminder) = (Pauses::new(), Reminder::default());
    loop {
        let ask = async { mongo.database("admin").run_command(doc! { "hello": 1 }).await };
        let source = match unless_stopped(stop, ask).await? {
            Ok(hello) => return Ok(check_server(&hello)?),
            Err(error) => error,
        };

        if let Fault::Fatal(advice) = classify::at_start(&source) {
            return Err(RescuerError::Refused { doing: ASKING, advice, source }.into());
        }
        if reminder.is_due() {
            tracing::warn!(error = classify::text(&source), "could not {ASKING}; trying again");
        }
        pauses.pause(stop).await;
    }
}

fn check_server(hello: &Document) -> Result<(), RescuerError> {
    let set = hello.get_str("setName").ok();
    if set == Some("globaldb") || names(hello).any(is_of_cosmos) {
        return Err(RescuerError::CosmosDb);
    }

    let is_sharded = hello.get_str("msg").ok() == Some("isdbgrid");
    if set.is_some() || is_sharded { Ok(()) } else { Err(RescuerError::NotAReplicaSet) }
}

/// The addresses that the server reports: its own address, and those of the members of its replica set.
fn names(hello: &Document) -> impl Iterator<Item = &str> {
    let hosts = hello.get_array("hosts").into_iter().flatten();
    hosts.filter_map(|host| host.as_str()).chain(hello.get_str("me").ok())
}

fn is_of_cosmos(name: &str) -> bool {
    name.contains(".documents.azure.") || name.contains(".mongo.cosmos.azure.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_sets_and_sharded_clusters_suit() {
        assert!(check_server(&doc! { "setName": "rs0", "hosts": ["mongo-1:27017"] }).is_ok());
        assert!(check_server(&doc! { "msg": "isdbgrid" }).is_ok());
    }

    #[test]
    fn a_single_server_is_refused_with_a_remedy() {
        let error = check_server(&doc! { "isWritablePrimary": true }).unwrap_err();
        assert!(error.to_string().contains("rs.initiate()"));
    }

    #[test]
    fn cosmos_db_with_request_units_is_refused_by_name() {
        let hello = doc! { "setName": "globaldb", "hosts": ["shop.mongo.cosmos.azure.com:10255"] };
        assert!(matches!(check_server(&hello), Err(RescuerError::CosmosDb)));
    }
}

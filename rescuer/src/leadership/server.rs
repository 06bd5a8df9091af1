//! What kind of server this is, and its operation time.

use mongodb::{
    Client,
    bson::{Document, Timestamp, doc},
    error::Error,
};
use tokio_util::sync::CancellationToken;

use crate::{
    RescuerError,
    classify::{self, Fault},
    observe::reminder::Reminder,
    send::commands::Pauses,
};

/// Refuses servers that cannot feed a rescuer; `false` when stopped first.
pub(crate) async fn check(client: &Client, stop: &CancellationToken) -> Result<bool, RescuerError> {
    let doing = "ask MongoDB what it is";
    let (mut pauses, mut reminder) = (Pauses::new(), Reminder::default());
    while !stop.is_cancelled() {
        let ask = async { client.database("admin").run_command(doc! { "hello": 1 }).await };
        let Some(answer) = stop.run_until_cancelled(ask).await else {
            break;
        };
        let source = match answer {
            Ok(hello) => return suits(&hello).map(|()| true),
            Err(error) => error,
        };
        if let Fault::Fatal(advice) = classify::at_start(&source) {
            return Err(RescuerError::Refused { doing, advice, source });
        }
        if reminder.is_due() {
            tracing::warn!(error = classify::text(&source), "could not {doing}; trying again");
        }
        pauses.pause(stop).await;
    }
    Ok(false)
}

fn suits(hello: &Document) -> Result<(), RescuerError> {
    let set = hello.get_str("setName").ok();
    let hosts = hello.get_array("hosts").into_iter().flatten();
    let mut names = hosts.filter_map(|host| host.as_str()).chain(hello.get_str("me").ok());
    let of_cosmos = |name: &str| name.contains(".documents.azure.") || name.contains(".mongo.cosmos.azure.");
    if set == Some("globaldb") || names.any(of_cosmos) {
        return Err(RescuerError::CosmosDb);
    }
    match set.is_some() || hello.get_str("msg").ok() == Some("isdbgrid") {
        true => Ok(()),
        false => Err(RescuerError::NotAReplicaSet),
    }
}

/// A time from which a change stream shows everything that is not saved yet.
pub(crate) async fn operation_time(client: &Client) -> Result<Timestamp, Error> {
    let reply = client.database("admin").run_command(doc! { "ping": 1 }).await?;
    reply
        .get_timestamp("operationTime")
        .map_err(|error| Error::custom(format!("the reply to `ping`: {error}")))
}

/// The latest time that this cluster knows of.
pub(crate) async fn cluster_time(client: &Client) -> Result<Timestamp, Error> {
    let reply = client.database("admin").run_command(doc! { "ping": 1 }).await?;
    let gossiped = reply.get_document("$clusterTime").and_then(|time| time.get_timestamp("clusterTime"));
    let times = [gossiped, reply.get_timestamp("operationTime")];
    let latest = times.into_iter().flatten().max();
    latest.ok_or_else(|| Error::custom("the reply to `ping` tells no cluster time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_sets_and_sharded_clusters_suit() {
        assert!(suits(&doc! { "setName": "rs0", "hosts": ["mongo-1:27017"] }).is_ok());
        assert!(suits(&doc! { "msg": "isdbgrid" }).is_ok());
    }

    #[test]
    fn a_single_server_is_refused_with_what_to_do() {
        let error = suits(&doc! { "isWritablePrimary": true }).unwrap_err();
        assert!(error.to_string().contains("rs.initiate()"));
    }

    #[test]
    fn cosmos_db_with_request_units_is_refused_by_name() {
        let hello = doc! { "setName": "globaldb", "hosts": ["shop.mongo.cosmos.azure.com:10255"] };
        assert!(matches!(suits(&hello), Err(RescuerError::CosmosDb)));
    }
}

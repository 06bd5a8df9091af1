//! Sends a write in a form that any server accepts: alone, and without the transaction number that a retryable write
//! needs.

use std::time::Duration;

use mongodb::{Client, bson::doc};

use crate::{
    encoding::codec,
    mongo::{
        concern::MAJORITY_TIMEOUT,
        departure::leave_for_a_server,
        error_codes::{self, Verdict},
        reply::{Reply, Said},
        statement::WriteOutcome,
        write_command::{WriteCommand, millis},
        write_request::WriteRequest,
    },
};

/// Time limit for the write itself, not including the wait for the majority.
const LONGEST: Duration = Duration::from_secs(1);

/// Sends a write only once, because repeating it would not be safe.
pub(crate) async fn send(client: &Client, write: &WriteRequest) -> WriteOutcome {
    let command = WriteCommand {
        kind: write.kind,
        collection: &write.namespace.coll,
        statements: vec![write.statement.as_ref()],
        retry: None,
        concern: doc! { "w": "majority", "wtimeout": millis(MAJORITY_TIMEOUT) },
        longest: MAJORITY_TIMEOUT + LONGEST,
    };
    let command = match codec::encode(&command) {
        Ok(command) => command,
        Err(error) => return WriteOutcome::Failed(error_codes::unencodable(error.to_string())),
    };

    let database = client.database(&write.namespace.db);
    let criteria = leave_for_a_server(vec![write.departure.clone()]);
    let reply = match database.run_raw_command(command).selection_criteria(criteria).await {
        Ok(reply) => Reply::read(&reply),
        Err(error) => Err(error),
    };

    match reply {
        Ok(Reply { concern: Some(concern), .. }) => WriteOutcome::Unknown(error_codes::lost(concern.text)),
        Ok(reply) => outcome_of(reply),
        Err(error) if error_codes::verdict(&error) == Verdict::Unknown => WriteOutcome::Unknown(error),
        Err(error) => WriteOutcome::Failed(error),
    }
}

/// Returns the outcome of the reply's only statement.
fn outcome_of(reply: Reply) -> WriteOutcome {
    match reply.of(&[0]) {
        Said::Each(mut each) => match each.pop().flatten() {
            Some(outcome) => outcome,
            None => WriteOutcome::Unknown(error_codes::lost("interrupted")),
        },
        Said::Some | Said::Nonsense => WriteOutcome::Unknown(error_codes::lost(
            "the reply's counts are \
            inconsistent",
        )),
    }
}

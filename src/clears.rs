//! Clears go out in windows: whatever waits while the previous window is in flight makes the next one.
//!
//! No timer: a lone clear goes at once. A window is one unordered `update` command per collection.

use std::{collections::BTreeMap, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use mongodb::{
    Client,
    bson::{Document, Uuid, doc},
    error::Error,
};
use tokio::sync::{mpsc, oneshot};

use crate::claim::{Claim, clear_statement, primary};

/// The server's own bound on the statements of one command is far above this.
const WINDOW: usize = 1_000;

/// Sends clears; clones share one queue.
#[derive(Debug, Clone)]
pub(crate) struct Clears {
    queue: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    namespace: mongodb::Namespace,
    statement: Document,
    done: oneshot::Sender<Result<(), String>>,
}

impl Clears {
    pub(crate) fn start(client: Client) -> Self {
        let (queue, requests) = mpsc::channel(WINDOW);
        tokio::spawn(run(client, requests));
        Self { queue }
    }

    /// Removes these delivered entries where the claim still holds them; resolves once the server has done it.
    ///
    /// # Errors
    /// A text; the entries then stay, and are delivered again once the claim has run out.
    pub(crate) async fn clear(&self, claim: &Claim, ids: &[Uuid]) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        let statement = clear_statement(claim, ids);
        let request = Request { namespace: claim.document.namespace.clone(), statement, done };
        self.queue.send(request).await.map_err(|_| "the clearing task has ended")?;
        answer.await.map_err(|_| "the clearing task has ended")?
    }
}

async fn run(client: Client, mut requests: mpsc::Receiver<Request>) {
    let mut window = Vec::with_capacity(WINDOW);
    while requests.recv_many(&mut window, WINDOW).await > 0 {
        let mut collections: BTreeMap<String, Vec<Request>> = BTreeMap::new();
        for request in window.drain(..) {
            collections.entry(request.namespace.to_string()).or_default().push(request);
        }
        let commands = collections.into_values().map(|requests| send(&client, requests));
        futures::future::join_all(commands).await;
    }
}

async fn send(client: &Client, requests: Vec<Request>) {
    let Some(namespace) = requests.first().map(|request| request.namespace.clone()) else {
        return;
    };
    let (statements, waiting): (Vec<_>, Vec<_>) =
        requests.into_iter().map(|request| (request.statement, request.done)).unzip();
    let command = doc! {
        "update": &namespace.coll,
        "updates": statements,
        "ordered": false,
        "writeConcern": { "w": 1 },
    };
    let database = client.database(&namespace.db);
    // A clear can be repeated at will: it matches ids and the claim.
    let tries = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(5);
    let answer = (|| async { database.run_command(command.clone()).selection_criteria(primary()).await })
        .retry(tries)
        .await;
    let answers = read_reply(answer, waiting.len());
    for (done, answer) in waiting.into_iter().zip(answers) {
        // Whoever asked may have gone.
        let _ = done.send(answer);
    }
}

/// One answer per statement. `run_command` returns `Ok` for a reply that refuses single statements: read it.
fn read_reply(reply: Result<Document, Error>, statements: usize) -> Vec<Result<(), String>> {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return vec![Err(error.to_string()); statements],
    };
    let mut answers = vec![Ok(()); statements];
    for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(|error| error.as_document())
    {
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        if let Some(answer) = index.and_then(|index| answers.get_mut(index)) {
            *answer = Err(error.get_str("errmsg").unwrap_or("refused").to_owned());
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_statement_fails_alone() {
        let reply = doc! { "ok": 1, "n": 2, "writeErrors": [{ "index": 1, "code": 2, "errmsg": "no" }] };
        assert_eq!(read_reply(Ok(reply), 3), [Ok(()), Err("no".into()), Ok(())]);
    }
}

//! Sends hand-written batches of updates as retryable writes. A command without a clear answer is repeated
//! with the same transaction number. If some updates matched no document, each update is repeated alone to
//! find out which updates matched none.

use mongodb::{
    Client, ClientSession, Database,
    bson::{Document, doc},
};
use tokio::sync::Mutex;

use crate::{bed::Bed, result::Result};

/// The first transaction number of a session. It is above any number that the driver reaches in its own
/// sessions.
const FIRST_NUMBER: i64 = 1 << 40;
const TRIES: usize = 3;

pub(super) struct RepeatableUpdates {
    client: Client,
    database: Database,
    collection: String,
    /// The sessions that no batch is using, each with the transaction number of its last command.
    idle: Mutex<Vec<(ClientSession, i64)>>,
}

impl RepeatableUpdates {
    pub(super) async fn new(bed: &Bed, collection: &str) -> Result<Self> {
        // A dropped session returns to the pool of its client. If the driver used this session for a
        // retryable write, the server would refuse the driver's lower transaction number, so these sessions
        // belong to a client of their own.
        let client = Client::with_uri_str(&bed.mongodb_uri).await?;
        Ok(Self {
            database: client.database(bed.name()),
            client,
            collection: collection.to_owned(),
            idle: Mutex::default(),
        })
    }

    /// Sends the updates and waits for the majority. Returns for each update whether it matched its document.
    pub(super) async fn send(&self, updates: Vec<Document>) -> Result<Vec<bool>> {
        let idle = self.idle.lock().await.pop();
        let (mut session, last) = match idle {
            Some(idle) => idle,
            None => (self.client.start_session().await?, FIRST_NUMBER),
        };
        let number = last + 1;

        let places: Vec<i32> = (0..i32::try_from(updates.len())?).collect();
        let found = if self.execute(&mut session, number, &updates, &places).await? == updates.len() {
            vec![true; updates.len()]
        } else {
            let mut found = Vec::with_capacity(updates.len());
            for (update, place) in updates.iter().zip(places) {
                let matched =
                    self.execute(&mut session, number, std::slice::from_ref(update), &[place]).await?;
                found.push(matched == 1);
            }
            found
        };

        self.idle.lock().await.push((session, number));
        Ok(found)
    }

    /// Repeats the command until there is an answer. The server executes each update at most once.
    async fn execute(
        &self,
        session: &mut ClientSession,
        number: i64,
        updates: &[Document],
        places: &[i32],
    ) -> Result<usize> {
        let mut tries = 0;
        loop {
            let command = doc! {
                "update": &self.collection,
                "updates": updates,
                "ordered": false,
                "txnNumber": number,
                "stmtIds": places,
                "writeConcern": { "w": "majority" },
            };
            tries += 1;
            match self.database.run_command(command).session(&mut *session).await {
                Ok(reply) => return Ok(usize::try_from(reply.get_i32("n")?)?),
                Err(error) if tries == TRIES => return Err(error.into()),
                Err(_) => {}
            }
        }
    }
}

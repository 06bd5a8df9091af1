//! The tasks of an application that save documents.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use document_outbox::{
    Error, InlineDispatcher, Loaded, Store,
    store::{Inserted, Saved},
};
use mongodb::{Client, bson::Document};
use tokio::time::sleep;

use super::{
    documents::{DEAD_BLOCKS, ORDERED, SavedDocument, UNORDERED},
    job::{Job, Line, Order},
};

/// How many savers an application has; each works on one document at a time.
const SAVERS: usize = 3;
/// The mean pause of a saver between two saves.
const PAUSE: Duration = Duration::from_millis(500);
/// How many saves of one document a saver makes.
const SAVES_OF_A_DOCUMENT: usize = 8;
/// How many savers work on a hot document without a pause (`HOT_SAVERS`), and for how long (`HOT_TIME`).
const HOT_SAVERS: usize = 4;
const HOT_TIME: Duration = Duration::from_secs(2);

/// All savers of an application.
pub(super) struct Savers {
    is_quiet: Arc<AtomicBool>,
    heat: Box<dyn Fn() + Send>,
}

impl Savers {
    pub(super) fn start(client: &Client, inline: &InlineDispatcher, job: &Job) -> Self {
        match job.order {
            Order::Ordered => Self::of::<ORDERED>(client, inline, job),
            Order::Unordered => Self::of::<UNORDERED>(client, inline, job),
            Order::DeadBlocks => Self::of::<DEAD_BLOCKS>(client, inline, job),
        }
    }

    fn of<const ORDER: u8>(client: &Client, inline: &InlineDispatcher, job: &Job) -> Self {
        let collection = client.database(&job.database).collection::<Document>(&job.collection);
        let is_quiet = Arc::new(AtomicBool::default());
        let saver: Saver<ORDER> = Saver {
            store: Store::new(collection, inline),
            name: job.name.clone(),
            life: std::process::id(),
            number: Arc::default(),
            is_quiet: is_quiet.clone(),
        };

        let indexes = saver.store.clone();
        tokio::spawn(async move {
            while indexes.ensure_indexes().await.is_err() {
                sleep(Duration::from_millis(500)).await;
            }
        });
        for _ in 0..SAVERS {
            tokio::spawn(saver.clone().save_steadily());
        }
        let heat = Box::new(move || {
            let id = saver.fresh_id("hot");
            for _ in 0..HOT_SAVERS {
                tokio::spawn(saver.clone().save_hot(id.clone()));
            }
        });
        Self { is_quiet, heat }
    }

    /// Stops all savers; no save begins after this call.
    pub(super) fn quiet(&self) {
        self.is_quiet.store(true, Ordering::SeqCst);
    }

    /// Starts several savers that work on one new document without a pause.
    pub(super) fn hot(&self) {
        (self.heat)();
    }
}

/// The state of a saver. Clones share the counter of saves.
struct Saver<const ORDER: u8> {
    store: Store<SavedDocument<ORDER>>,
    name: String,
    life: u32,
    number: Arc<AtomicU64>,
    is_quiet: Arc<AtomicBool>,
}

impl<const ORDER: u8> Clone for Saver<ORDER> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            name: self.name.clone(),
            life: self.life,
            number: self.number.clone(),
            is_quiet: self.is_quiet.clone(),
        }
    }
}

impl<const ORDER: u8> Saver<ORDER> {
    fn fresh_id(&self, what: &str) -> String {
        format!("{}-{what}-{}", self.name, uuid::Uuid::new_v4().simple())
    }

    fn is_busy(&self) -> bool {
        !self.is_quiet.load(Ordering::SeqCst)
    }

    async fn save_steadily(self) {
        while self.is_busy() {
            let id = self.fresh_id("doc");
            let mut loaded = self.insert(&id).await;
            for _ in 1..SAVES_OF_A_DOCUMENT {
                sleep(PAUSE.mul_f64(fastrand::f64() * 2.0)).await;
                if !self.is_busy() {
                    return;
                }
                // After a save without a clear outcome, only a load shows the state of the document.
                let current = match loaded.take() {
                    Some(current) => Some(current),
                    None => self.store.load(&id).await.ok().flatten().map(Box::new),
                };
                let Some(current) = current else { continue };
                loaded = self.save(current).await;
            }
        }
    }

    async fn save_hot(self, id: String) {
        let begun = Instant::now();
        drop(self.insert(&id).await);
        while self.is_busy() && begun.elapsed() < HOT_TIME {
            match self.store.load(&id).await {
                Ok(Some(loaded)) => drop(self.save(Box::new(loaded)).await),
                _ => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Inserts a document, and returns it if the insert was certainly applied.
    async fn insert(&self, id: &str) -> Option<Box<Loaded<SavedDocument<ORDER>>>> {
        let mut document = SavedDocument::new(id);
        let number = self.begin(id, document.send_some());
        match self.store.insert(document).await {
            Ok(Inserted::Applied(loaded, _)) => {
                self.end(number, "applied");
                Some(loaded)
            }
            Ok(Inserted::Exists(_)) => {
                self.end(number, "exists");
                None
            }
            Ok(Inserted::Unknown(..)) => {
                self.end(number, "unknown");
                None
            }
            Err(error) => {
                self.end(number, &outcome_of(&error));
                None
            }
        }
    }

    /// Saves a document, and returns it if the save was certainly applied.
    async fn save(
        &self,
        mut loaded: Box<Loaded<SavedDocument<ORDER>>>,
    ) -> Option<Box<Loaded<SavedDocument<ORDER>>>> {
        let id = loaded.id.clone();
        let number = self.begin(&id, loaded.send_some());
        let outcome = match self.store.save(&mut loaded).await {
            Ok(Saved::Applied(_)) => {
                self.end(number, "applied");
                return Some(loaded);
            }
            Ok(Saved::Unchanged) => "unchanged".to_owned(),
            Ok(Saved::Conflict) => "conflict".to_owned(),
            Ok(Saved::Gone) => "gone".to_owned(),
            Ok(Saved::Unknown(_)) => "unknown".to_owned(),
            Err(error) => outcome_of(&error),
        };
        self.end(number, &outcome);
        None
    }

    fn begin(&self, document: &str, ids: Vec<String>) -> u64 {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        Line::Try { life: self.life, number, document: document.to_owned(), ids }.say();
        number
    }

    fn end(&self, number: u64, outcome: &str) {
        Line::End { life: self.life, number, outcome: outcome.to_owned() }.say();
    }
}

fn outcome_of(error: &Error) -> String {
    match error {
        Error::Unavailable(_) => "unavailable".to_owned(),
        Error::Unknown { .. } => "unknown".to_owned(),
        Error::OutboxFull { .. } => "full".to_owned(),
        other => {
            eprintln!("a save was refused: {other}");
            "refused".to_owned()
        }
    }
}

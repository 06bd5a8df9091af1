//! Notes every save that an application began, the outcome that the application reported, and every message that was received.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::Result;
use parking_lot::Mutex;
use serde_json::json;
use uuid::Uuid;

use crate::{application::Line, timeline::Timeline};

/// The ledger of one run. All clones of a ledger share their entries. Each entry is also written to a file.
#[derive(Clone)]
pub(crate) struct Ledger {
    entries: Arc<Mutex<Entries>>,
    timeline: Timeline,
}

struct Entries {
    saves: Vec<Save>,
    /// For each save that has no outcome yet: the index in `saves`. The key is the name of the process, the process id (`life`)
    /// and the number of the save.
    open: HashMap<(String, u32, u64), usize>,
    receipts: Vec<Receipt>,
    /// For each message that was dead: the times at which the harness replayed the message.
    died: HashMap<Uuid, Vec<Instant>>,
    /// Each drop of a collection: the name of the collection, and the time.
    drops: Vec<(String, Instant)>,
    /// For each process: by how many milliseconds its date is wrong, and when the process reported the date.
    dates: HashMap<String, (i64, Instant)>,
    file: BufWriter<File>,
}

/// A save, together with its messages, that an application announced.
#[derive(Debug, Clone)]
pub(crate) struct Save {
    pub(crate) process: String,
    pub(crate) collection: String,
    pub(crate) document: String,
    pub(crate) ids: Vec<Uuid>,
    pub(crate) begun: Instant,
    /// When the save ended, and its outcome; `None` if the process died before it reported an outcome.
    pub(crate) end: Option<(Instant, String)>,
}

/// A message that the harness received.
#[derive(Debug, Clone)]
pub(crate) struct Receipt {
    pub(crate) id: Uuid,
    /// Whether RabbitMQ had already delivered this copy to the harness, without getting an acknowledgement.
    pub(crate) is_redelivered: bool,
}

impl Ledger {
    pub(crate) fn open(file: &Path, timeline: &Timeline) -> Result<Self> {
        let entries = Entries {
            saves: Vec::new(),
            open: HashMap::new(),
            receipts: Vec::new(),
            died: HashMap::new(),
            drops: Vec::new(),
            dates: HashMap::new(),
            file: BufWriter::new(File::create(file)?),
        };
        Ok(Self { entries: Arc::new(Mutex::new(entries)), timeline: timeline.clone() })
    }

    /// Notes a line that an application printed.
    pub(crate) fn hear(&self, process: &str, line: &str) {
        let Ok(said) = serde_json::from_str(line) else { return };
        match said {
            Line::Try { life, number, document, ids } => {
                let ids = ids.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect();
                let place = self.begin(process, process, &document, ids);
                self.entries.lock().open.insert((process.to_owned(), life, number), place);
            }
            Line::End { life, number, outcome } => {
                let place = self.entries.lock().open.remove(&(process.to_owned(), life, number));
                if let Some(place) = place {
                    self.end(place, &outcome);
                }
            }
            Line::Date { millis } => {
                let off = millis - mongodb::bson::DateTime::now().timestamp_millis();
                self.entries.lock().dates.insert(process.to_owned(), (off, Instant::now()));
            }
        }
    }

    /// Notes that a save is about to be made, and returns the index of the save in `saves`.
    pub(crate) fn begin(&self, process: &str, collection: &str, document: &str, ids: Vec<Uuid>) -> usize {
        let at = self.timeline.now();
        let mut entries = self.entries.lock();
        entries.write(&json!({ "at": at, "process": process, "tries": document, "ids": ids }));
        entries.saves.push(Save {
            process: process.to_owned(),
            collection: collection.to_owned(),
            document: document.to_owned(),
            ids,
            begun: Instant::now(),
            end: None,
        });
        entries.saves.len() - 1
    }

    /// Notes the outcome of the save at the index `place` of `saves`.
    pub(crate) fn end(&self, place: usize, outcome: &str) {
        let at = self.timeline.now();
        let mut entries = self.entries.lock();
        let document = entries.saves[place].document.clone();
        entries.write(&json!({ "at": at, "of": document, "outcome": outcome }));
        entries.saves[place].end = Some((Instant::now(), outcome.to_owned()));
    }

    pub(crate) fn receive(&self, id: Uuid, is_redelivered: bool, by: &str) {
        let at = self.timeline.now();
        let mut entries = self.entries.lock();
        entries.write(&json!({ "at": at, "received": id, "redelivered": is_redelivered, "by": by }));
        entries.receipts.push(Receipt { id, is_redelivered });
    }

    /// Notes that a message was found dead and was replayed.
    pub(crate) fn replay(&self, id: Uuid) {
        let at = self.timeline.now();
        let mut entries = self.entries.lock();
        entries.write(&json!({ "at": at, "replayed": id }));
        entries.died.entry(id).or_default().push(Instant::now());
    }

    /// Notes that a collection was dropped with all its documents.
    pub(crate) fn drop_collection(&self, name: &str) {
        self.entries.lock().drops.push((name.to_owned(), Instant::now()));
    }

    pub(crate) fn saves(&self) -> Vec<Save> {
        self.entries.lock().saves.clone()
    }

    pub(crate) fn receipts(&self) -> Vec<Receipt> {
        self.entries.lock().receipts.clone()
    }

    pub(crate) fn died(&self) -> HashMap<Uuid, Vec<Instant>> {
        self.entries.lock().died.clone()
    }

    pub(crate) fn drops(&self) -> Vec<(String, Instant)> {
        self.entries.lock().drops.clone()
    }

    /// Whether a message was received.
    pub(crate) fn has(&self, id: Uuid) -> bool {
        self.entries.lock().receipts.iter().any(|receipt| receipt.id == id)
    }

    /// Returns the ids of all messages that were received.
    pub(crate) fn received(&self) -> HashSet<Uuid> {
        self.entries.lock().receipts.iter().map(|receipt| receipt.id).collect()
    }

    /// Returns by how many milliseconds the date of a process was wrong when the process last reported the date; `None` if that
    /// report is older than `since`.
    pub(crate) fn clock_of(&self, process: &str, since: Instant) -> Option<i64> {
        let entries = self.entries.lock();
        entries.dates.get(process).filter(|(_, at)| *at >= since).map(|(off, _)| *off)
    }

    pub(crate) fn flush(&self) {
        let _ = self.entries.lock().file.flush();
    }
}

impl Entries {
    fn write(&mut self, line: &serde_json::Value) {
        let _ = writeln!(self.file, "{line}");
    }
}

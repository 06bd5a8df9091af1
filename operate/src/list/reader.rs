//! Reads the documents of a plan one after the other.

use std::{cmp::Ordering, collections::VecDeque, fmt};

use document_outbox::{
    DocumentRef,
    internal::{Slot, read_outbox_of},
};
use mongodb::{
    Cursor, Namespace,
    bson::{Bson, DateTime, RawArray, RawBsonRef, RawDocument, RawDocumentBuf, doc},
    options::{FindOptions, Hint},
};

use super::{
    PlanNote, Row, Scan,
    plan::{Part, Read, plan},
    token::{Place, Position},
};
use crate::{Operator, error::OperateError, query::Query, state::MessageState};

/// The number of documents that one reply of the server has at most. The first reply of a small page should be small.
const BATCH: u32 = 100;

/// Gives out the messages that meet a query, one after the other.
pub struct Lister {
    operator: Operator,
    query: Query,
    scan: Scan,
    now: DateTime,
    reads: VecDeque<Read>,
    open: Option<(Read, Cursor<RawDocumentBuf>)>,
    /// The rest of the document that was read last.
    rows: VecDeque<(DocumentRef, Row, Place)>,
    /// The place after which the first read continues.
    resume: Option<Place>,
    last: Option<Place>,
    plans: Vec<PlanNote>,
}

impl fmt::Debug for Lister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lister").field("query", &self.query.to_string()).finish_non_exhaustive()
    }
}

impl Operator {
    /// Opens a list. `after` is the token of a place in the same list.
    pub async fn lister(
        &self,
        query: Query,
        after: Option<&str>,
        scan: Scan,
    ) -> Result<Lister, OperateError> {
        let resume = after.map(|token| Place::read(token, &query, scan)).transpose()?;
        let now = self.now().await?;
        let is_sharded = self.is_sharded().await?;

        let (mut reads, mut plans) = (VecDeque::new(), Vec::new());
        for collection in self.collections_of(&query).await? {
            let (planned, note) = plan(&query, &collection, scan, is_sharded, now)?;
            reads.extend(planned);
            plans.push(note);
        }
        if let Some(place) = &resume {
            let is_before = |read: &Read| {
                let order = name(&read.namespace).cmp(&name(&place.namespace));
                order.then(read.part.code().cmp(&place.part)) == Ordering::Less
            };
            while reads.front().is_some_and(is_before) {
                reads.pop_front();
            }
        }

        Ok(Lister {
            operator: self.clone(),
            query,
            scan,
            now,
            reads,
            open: None,
            rows: VecDeque::new(),
            resume,
            last: None,
            plans,
        })
    }

    /// Whether the server is a router of a sharded cluster.
    pub(crate) async fn is_sharded(&self) -> Result<bool, OperateError> {
        let hello = self.client.database("admin").run_command(doc! { "hello": 1 }).await;
        let hello = hello.map_err(OperateError::reading("the kind of the server"))?;
        Ok(hello.get_str("msg").is_ok_and(|kind| kind == "isdbgrid"))
    }
}

fn name(namespace: &Namespace) -> String {
    namespace.to_string()
}

impl Lister {
    /// The next message.
    pub async fn next(&mut self) -> Result<Option<Row>, OperateError> {
        Ok(self.next_message().await?.map(|(_, row)| row))
    }

    /// The next message, with its document.
    pub(crate) async fn next_message(&mut self) -> Result<Option<(DocumentRef, Row)>, OperateError> {
        loop {
            if let Some((document, row, place)) = self.rows.pop_front() {
                self.last = Some(place);
                return Ok(Some((document, row)));
            }
            if self.open.is_none() && !self.open_next().await? {
                return Ok(None);
            }
            self.read_document().await?;
        }
    }

    /// The token of the place after the last message. `None` before the first message.
    pub fn token(&self) -> Option<String> {
        self.last.as_ref()?.written(&self.query, self.scan)
    }

    /// What serves the query.
    pub fn plans(&self) -> &[PlanNote] {
        &self.plans
    }

    /// The server's time at which the list was opened, by which states are derived.
    pub fn now(&self) -> DateTime {
        self.now
    }

    /// Opens the next read; false if there is none.
    async fn open_next(&mut self) -> Result<bool, OperateError> {
        let Some(read) = self.reads.pop_front() else { return Ok(false) };
        let is_of_read = |place: &Place| place.namespace == read.namespace && place.part == read.part.code();
        self.resume = self.resume.take().filter(is_of_read);

        let mut options = FindOptions::default();
        options.projection = Some(doc! { "outbox": 1 });
        options.batch_size = Some(BATCH);
        options.max_time = Some(self.operator.settings.max_time);
        let mut from = read.from;
        if read.part == Part::ById {
            options.sort = Some(doc! { "_id": 1 });
            options.hint = Some(Hint::Keys(doc! { "_id": 1 }));
        } else {
            options.show_record_id = Some(true);
            options.hint = read.index.clone().map(Hint::Name);
        }
        match self.resume.as_ref().map(|place| &place.position) {
            Some(Position::Index { date, .. }) => from = from.max(*date),
            // Unlike a filter, this limit compares values of all types.
            Some(Position::Id(id)) => options.min = Some(doc! { "_id": id.clone() }),
            None => {}
        }

        let collection = self.operator.collection(&read.namespace);
        let found = collection.find(read.filter(from)).with_options(options).await;
        let cursor = found.map_err(OperateError::reading(name(&read.namespace)))?;
        self.open = Some((read, cursor));
        Ok(true)
    }

    /// Reads the next document, and keeps its rows.
    async fn read_document(&mut self) -> Result<(), OperateError> {
        let Some((read, cursor)) = &mut self.open else { return Ok(()) };
        let what = name(&read.namespace);
        if !cursor.advance().await.map_err(OperateError::reading(what))? {
            self.open = None;
            return Ok(());
        }

        let found = cursor.current();
        let Some(document) = DocumentRef::of_stored(read.namespace.clone(), found) else { return Ok(()) };
        let Some(position) = position(read, &document, found) else { return Ok(()) };
        let resume = self.resume.as_ref().map(|place| (compare(&position, &place.position), place));
        let after = match resume {
            Some((Ordering::Less, _)) => return Ok(()),
            Some((Ordering::Equal, place)) => Some(place),
            _ => None,
        };

        let rows = rows(read, &document, found, &self.query, self.now);
        let start = after.map_or(0, |place| rows_until(&rows, place));
        for row in rows.into_iter().skip(start) {
            let place = Place {
                namespace: read.namespace.clone(),
                part: read.part.code(),
                position: position.clone(),
                message: row.id,
                number: i32::try_from(row.place).unwrap_or(i32::MAX),
            };
            self.rows.push_back((document.clone(), row, place));
        }
        Ok(())
    }
}

/// The number of rows up to the last one that was listed.
fn rows_until(rows: &[Row], last: &Place) -> usize {
    let is_last = |row: &Row| match last.message {
        Some(id) => row.id == Some(id),
        None => row.id.is_none() && i32::try_from(row.place) == Ok(last.number),
    };
    // If it is gone, the messages before it are gone too, because messages leave from the front.
    rows.iter().position(is_last).map_or(0, |at| at + 1)
}

/// The rows of a document that belong to a read.
fn rows(read: &Read, document: &DocumentRef, found: &RawDocument, query: &Query, now: DateTime) -> Vec<Row> {
    let slots = match read_outbox_of(found) {
        Ok(slots) => slots,
        Err(flaw) if read.part == Part::ById && query.includes(MessageState::Unreadable) => {
            return vec![Row::of_flaw(document, 1, flaw.to_string())];
        }
        Err(_) => return Vec::new(),
    };

    let mut rows = Vec::new();
    for (index, slot) in slots.iter().enumerate() {
        if belongs(slot, read.part) && query.matches(slot, now) {
            rows.push(Row::of(document, index + 1, slot, now));
        }
    }
    rows
}

fn belongs(slot: &Slot, part: Part) -> bool {
    if part == Part::ById {
        return true;
    }
    let Some(entry) = slot.entry() else { return false };
    match part {
        Part::Undated => entry.dead.is_none() && entry.available_at.is_none(),
        Part::Dated => entry.dead.is_none() && entry.available_at.is_some(),
        Part::Dead => entry.dead.is_some(),
        Part::ById => true,
    }
}

/// The place of a document in a read. The server visits a document at the first of its keys within the limits.
fn position(read: &Read, document: &DocumentRef, found: &RawDocument) -> Option<Position> {
    if read.part == Part::ById {
        return Some(Position::Id(document.id()));
    }
    let record = found.get("$recordId").ok()??;
    let date = match read.part.date_field() {
        Some(field) => earliest(found, field, read.from, read.to)?,
        None => DateTime::MIN,
    };
    Some(Position::Index { date, record: Bson::try_from(record).ok()? })
}

fn earliest(found: &RawDocument, field: &str, from: DateTime, to: DateTime) -> Option<DateTime> {
    let outbox: &RawArray = found.get_array("outbox").ok()?;
    let mut earliest: Option<DateTime> = None;
    // An element that can't be read ends the array.
    for element in outbox.into_iter().map_while(Result::ok) {
        let RawBsonRef::Document(element) = element else { continue };
        let Ok(date) = element.get_datetime(field) else { continue };
        if (from..=to).contains(&date) && earliest.is_none_or(|known| date < known) {
            earliest = Some(date);
        }
    }
    earliest
}

fn compare(one: &Position, other: &Position) -> Ordering {
    match (one, other) {
        (Position::Index { date, record }, Position::Index { date: other_date, record: other_record }) => {
            date.cmp(other_date).then_with(|| compare_records(record, other_record))
        }
        // The server's limit leaves out the earlier ones.
        (Position::Id(id), Position::Id(other)) if id == other => Ordering::Equal,
        _ => Ordering::Greater,
    }
}

/// The order of two documents with the same date. A record is a number, or bytes in a clustered collection.
fn compare_records(one: &Bson, other: &Bson) -> Ordering {
    match (one, other) {
        (Bson::Int64(one), Bson::Int64(other)) => one.cmp(other),
        (Bson::Binary(one), Bson::Binary(other)) => one.bytes.cmp(&other.bytes),
        _ => Ordering::Greater,
    }
}

//! One query of the sweep over a collection, read one page at a time.
//!
//! The query uses the partial index on `outbox.available_at`, in the index's order, with one cursor from
//! the oldest entry to now:
//!
//! - *No sort.* The index is multikey, and a sort by an array's field would read the whole range before
//!   the first page.
//! - *No separate queries with a lower bound.* Thousands of entries can share one millisecond (a transaction,
//!   a bulk schedule). A bound after that millisecond would skip entries, and a bound at that millisecond
//!   would read the same entries forever. A cursor's place in the index is exact, is as cheap for the server
//!   as a bound, and stays valid when documents are delivered or claimed meanwhile.
//! - *`$elemMatch`*, because conditions on the plain path `outbox.available_at` could be satisfied by two
//!   different elements.

use std::{collections::VecDeque, time::Duration};

use mongodb::{
    Cursor, Namespace,
    bson::{Bson, DateTime, Document, RawDocumentBuf, doc},
    options::{FindOptions, Hint},
};

use super::{budget::Turns, catalogue::Catalogue, index::Index};
use crate::{
    halt::Interrupted,
    judge::{
        inspect::{Inspector, Wanted, projection},
        verdict::Moment,
    },
    leadership::term::Term,
};

/// The time limit of a query.
pub(super) const LONGEST_QUERY: Duration = Duration::from_mins(5);

/// A query that is being read.
pub(super) struct OpenQuery {
    cursor: Cursor<RawDocumentBuf>,
    /// Documents that were found but not yet queued, because there was no room.
    pub(super) waiting: VecDeque<Wanted>,
    page: PageOf,
    /// Whether the cursor has reached its end.
    pub(super) ended: bool,
}

/// The page that is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageOf {
    /// The first page, which the reply to the query contained.
    Opening,
    /// A later page, which is a separate query for the server.
    Cursor,
}

/// The contents of a page.
#[derive(Debug, Default)]
pub(super) struct QueriedPage {
    pub(super) wanted: Vec<Wanted>,
    pub(super) examined: usize,
    /// Whether the page had an entry without a date.
    pub(super) undated: bool,
}

impl OpenQuery {
    pub(super) async fn open(
        term: &Term,
        namespace: &Namespace,
        filter: Document,
        mut options: FindOptions,
        turns: &mut Turns<'_>,
    ) -> Result<Self, Interrupted> {
        options.projection = Some(projection());
        options.batch_size = u32::try_from(term.settings.page_size).ok();
        options.max_time = Some(LONGEST_QUERY);

        turns.wait().await?;
        let collection = term.mongo.collection(namespace);
        let find = collection.find(filter).with_options(options);
        let cursor = term.unless_stopped(find.into_future()).await??;
        Ok(Self { cursor, waiting: VecDeque::new(), page: PageOf::Opening, ended: false })
    }

    /// Reads the next page.
    pub(super) async fn read_page(
        &mut self,
        term: &Term,
        namespace: &Namespace,
        inspector: &Inspector,
        catalogue: &Catalogue,
        turns: &mut Turns<'_>,
    ) -> Result<QueriedPage, Interrupted> {
        let moment = Moment::sweeping(term.mongo.now().await?, term.plan.delay);
        if self.page == PageOf::Cursor {
            turns.wait().await?;
        }
        self.page = PageOf::Cursor;

        let mut found = QueriedPage::default();
        while found.examined < term.settings.page_size {
            // A stop needn't wait for documents that the server is still reading.
            let is_there = term.unless_stopped(self.cursor.advance()).await??;
            if !is_there {
                self.ended = true;
                break;
            }
            found.examined += 1;

            catalogue.found_outbox(namespace);
            let inspected = inspector.inspect(namespace, self.cursor.current(), moment);
            found.undated |= inspected.undated;
            found.wanted.extend(inspected.wanted);
        }
        Ok(found)
    }
}

pub(super) fn by(index: &Index) -> FindOptions {
    FindOptions::builder().hint(Hint::Name(index.name.clone())).build()
}

/// A filter for documents with an entry whose date has passed. The first condition lets the server use the
/// partial index.
pub fn due_by(now: DateTime) -> Document {
    doc! { "outbox.id": { "$exists": true }, "outbox": { "$elemMatch": { "available_at": { "$lte": now } } } }
}

/// A filter for documents with an entry that is not dead and has no date.
pub fn undated() -> Document {
    let entry = doc! { "available_at": Bson::Null, "dead_at": Bson::Null };
    doc! { "outbox.id": { "$exists": true }, "outbox": { "$elemMatch": entry } }
}

//! One change as the stream shows it.

use std::time::Instant;

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{DateTime, RawDocumentBuf, Timestamp},
    change_stream::event::ResumeToken,
};
use serde::Deserialize;

use crate::{stream::position::Mark, stream::token};

/// As it is sent, projected. Kept raw where content is a user's, so that none of it can keep a change from being read: a
/// change that can't be read can't be passed either, since its token is in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawChange {
    #[serde(rename = "_id")]
    token: ResumeToken,
    /// Only of those that fill no outbox.
    operation_type: Option<String>,
    ns: Option<RawDocumentBuf>,
    key: Option<RawDocumentBuf>,
    at: Option<DateTime>,
    /// When this process read it.
    #[serde(skip, default = "Instant::now")]
    read: Instant,
}

/// A document whose outbox was filled.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    pub(crate) document: DocumentRef,
    /// When, by the server's clock.
    pub(crate) at: DateTime,
    /// Since when this process has it in hand.
    pub(crate) read: Instant,
    /// The position behind this change.
    pub(crate) mark: Mark,
}

/// Whom a change is about.
#[derive(Debug)]
pub(crate) enum Change {
    /// A document; which one is still to be read.
    Document(Box<RawChange>),
    /// The stream ends here and goes on behind it.
    Invalidate(Mark),
    /// A collection was given a name that is watched, with all that is in it.
    Renamed(Mark),
}

impl RawChange {
    pub(crate) fn sort(self) -> Change {
        match self.operation_type.as_deref() {
            Some("invalidate") => Change::Invalidate(self.mark()),
            Some("rename") => Change::Renamed(self.mark()),
            _ => Change::Document(Box::new(self)),
        }
    }

    /// The document whose outbox was filled; the position behind a change that names none.
    pub(crate) fn read(self) -> Result<Box<Filled>, Mark> {
        let (at, read, document) = (self.at, self.read, self.document());
        let mark = self.mark();
        let Some(document) = document else { return Err(mark) };
        let seconds = |time: Timestamp| DateTime::from_millis(i64::from(time.time) * 1000);
        let at = at.or(mark.cluster_time.map(seconds)).unwrap_or(DateTime::from_millis(0));
        Ok(Box::new(Filled { document, at, read, mark }))
    }

    /// The position behind it.
    fn mark(self) -> Mark {
        let cluster_time = token::cluster_time(&self.token);
        Mark { token: Some(self.token), cluster_time }
    }

    fn document(&self) -> Option<DocumentRef> {
        let ns = self.ns.as_ref()?;
        let namespace = Namespace::new(ns.get_str("db").ok()?, ns.get_str("coll").ok()?);
        Some(DocumentRef::new(namespace, self.key.clone()?))
    }
}

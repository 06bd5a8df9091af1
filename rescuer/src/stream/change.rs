//! One change as the stream shows it.

use std::time::Instant;

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{DateTime, RawDocumentBuf, Timestamp},
    change_stream::event::ResumeToken,
};
use serde::Deserialize;

use super::{position::Mark, token};

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

/// What a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// A document; which one is still to be read.
    Document,
    /// The stream ends here and continues behind it.
    Invalidate,
    /// A collection was given a name that is watched, with all that is in it.
    Rename,
}

/// What the reader hands to the follower, in order.
#[derive(Debug)]
pub(crate) enum Item {
    /// A document was changed. Not yet read: the server waits for its reader, and shall not wait for that as well.
    Changed(Box<RawChange>),
    /// Nothing that matters lies before this.
    UpTo(Mark),
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

impl RawChange {
    pub(crate) fn kind(&self) -> ChangeKind {
        match self.operation_type.as_deref() {
            Some("invalidate") => ChangeKind::Invalidate,
            Some("rename") => ChangeKind::Rename,
            _ => ChangeKind::Document,
        }
    }

    /// The document whose outbox was filled; none where the change names no document that a command can name.
    pub(crate) fn filled(&self) -> Option<Filled> {
        let document = self.document()?;
        let mark = self.mark();
        let at = self.at.or(mark.cluster_time.map(date_of)).unwrap_or(DateTime::from_millis(0));
        Some(Filled { document, at, read: self.read, mark })
    }

    /// The position behind it.
    pub(crate) fn mark(&self) -> Mark {
        let cluster_time = token::cluster_time(&self.token);
        Mark { token: Some(self.token.clone()), cluster_time }
    }

    fn document(&self) -> Option<DocumentRef> {
        let ns = self.ns.as_ref()?;
        let namespace = Namespace::new(ns.get_str("db").ok()?, ns.get_str("coll").ok()?);
        Some(DocumentRef::new(namespace, self.key.clone()?))
    }
}

fn date_of(time: Timestamp) -> DateTime {
    DateTime::from_millis(i64::from(time.time) * 1000)
}

//! One change, as the change stream shows it.

use std::time::Instant;

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{DateTime, RawDocumentBuf, Timestamp},
    change_stream::event::ResumeToken,
};
use serde::Deserialize;

use super::{position::Mark, token};

/// A change as the server sends it, reduced to a few fields. User content is kept raw, so that it can't make
/// the change unreadable: an unreadable change could not even be skipped, because its token would be
/// unreadable too.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawChange {
    #[serde(rename = "_id")]
    token: ResumeToken,
    /// Present only for changes that fill no outbox.
    operation_type: Option<String>,
    ns: Option<RawDocumentBuf>,
    key: Option<RawDocumentBuf>,
    at: Option<DateTime>,
    /// The time when this process read the change.
    #[serde(skip, default = "Instant::now")]
    read: Instant,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// A document was changed. Its key has not been parsed yet.
    Document,
    /// This change ended the cursor, and a new cursor continues after the change.
    Invalidate,
    /// A collection was renamed, together with all its documents, to a watched name.
    Rename,
}

/// An item that the reader passes to the follower. Items are passed in order.
#[derive(Debug)]
pub(crate) enum Item {
    /// A document was changed. The change is not parsed yet: parsing is left to the follower, because the
    /// server waits while the reader works.
    Changed(Box<RawChange>),
    /// All changes before this mark are irrelevant or were passed on.
    UpTo(Mark),
}

/// A document whose outbox was filled.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    pub(crate) document: DocumentRef,
    /// The time of the change, by the server's clock.
    pub(crate) at: DateTime,
    /// When this process read the change, which it has held since then.
    pub(crate) read: Instant,
    /// The position after this change.
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

    /// The document whose outbox was filled; `None` if no command can name the changed document.
    pub(crate) fn filled(&self) -> Option<Filled> {
        let document = self.document()?;
        let mark = self.mark();
        let at = self.at.or(mark.cluster_time.map(date_of)).unwrap_or(DateTime::from_millis(0));
        Some(Filled { document, at, read: self.read, mark })
    }

    /// The position after this change.
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

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

/// As it is sent, projected. User content is kept raw, so that it can't make a change unreadable: an
/// unreadable change could not even be skipped, because its token is in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawChange {
    #[serde(rename = "_id")]
    token: ResumeToken,
    /// Only for changes that fill no outbox.
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
    /// A document, whose key is not read yet.
    Document,
    /// The stream ends here and continues after it.
    Invalidate,
    /// A collection was renamed to a watched name, with all its documents.
    Rename,
}

/// What the reader hands to the follower, in order.
#[derive(Debug)]
pub(crate) enum Item {
    /// A document was changed. Not parsed yet: the server waits for the reader, which should not spend time
    /// on parsing.
    Changed(Box<RawChange>),
    /// There is no relevant change before this.
    UpTo(Mark),
}

/// A document whose outbox was filled.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    pub(crate) document: DocumentRef,
    /// When, by the server's clock.
    pub(crate) at: DateTime,
    /// Since when this process holds it.
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

    /// The document whose outbox was filled; `None` if the change names no document that a command can name.
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

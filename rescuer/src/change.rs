//! One change as the stream shows it.

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{DateTime, Document, RawDocumentBuf, Timestamp},
    change_stream::event::ResumeToken,
};
use serde::Deserialize;

use crate::{position::Mark, token};

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
}

/// A document whose outbox was filled.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    pub(crate) document: DocumentRef,
    /// When, by the server's clock.
    pub(crate) at: DateTime,
    /// The position behind this change.
    pub(crate) mark: Mark,
}

/// What a change says.
#[derive(Debug)]
pub(crate) enum Change {
    Filled(Box<Filled>),
    /// The stream ends here and goes on behind it.
    Invalidate(Mark),
    /// A collection was given a name that is watched, with all that is in it.
    Renamed(Mark),
    /// It names no document.
    Nameless(Mark),
}

impl RawChange {
    /// Whether it is about the stream itself, and not about a document.
    pub(crate) fn is_of_stream(&self) -> bool {
        self.operation_type.is_some()
    }

    pub(crate) fn read(self) -> Change {
        let document = self.document();
        let cluster_time = token::cluster_time(&self.token);
        let mark = Mark { token: Some(self.token), cluster_time };
        match (self.operation_type.as_deref(), document) {
            (Some("invalidate"), _) => Change::Invalidate(mark),
            (Some("rename"), _) => Change::Renamed(mark),
            (_, Some(document)) => {
                let seconds = |time: Timestamp| DateTime::from_millis(i64::from(time.time) * 1000);
                let at = self.at.or(cluster_time.map(seconds));
                let at = at.unwrap_or(DateTime::from_millis(0));
                Change::Filled(Box::new(Filled { document, at, mark }))
            }
            (_, None) => Change::Nameless(mark),
        }
    }

    fn document(&self) -> Option<DocumentRef> {
        let ns = self.ns.as_ref()?;
        let namespace = Namespace::new(ns.get_str("db").ok()?, ns.get_str("coll").ok()?);
        let key = Document::try_from(self.key.clone()?).ok()?;
        Some(DocumentRef { namespace, key })
    }
}

//! One change as the stream shows it.

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{DateTime, Document, RawDocumentBuf, Timestamp},
    change_stream::event::ResumeToken,
};
use serde::Deserialize;

use crate::position::Mark;

/// As it is sent, projected. Kept raw where content is a user's, so that none of it can keep a change from being read: a
/// change that can't be read can't be passed either, since its token is in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawChange {
    #[serde(rename = "_id")]
    token: ResumeToken,
    operation_type: String,
    ns: Option<RawDocumentBuf>,
    document_key: Option<RawDocumentBuf>,
    cluster_time: Option<Timestamp>,
    wall_time: Option<DateTime>,
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
    /// It names no document.
    Nameless(Mark),
}

impl RawChange {
    pub(crate) fn read(self) -> Change {
        let document = self.document();
        let mark = Mark { token: Some(self.token), cluster_time: self.cluster_time };
        match (self.operation_type.as_str(), document) {
            ("invalidate", _) => Change::Invalidate(mark),
            (_, Some(document)) => {
                let seconds = |time: Timestamp| DateTime::from_millis(i64::from(time.time) * 1000);
                let at = self.wall_time.or(self.cluster_time.map(seconds));
                let at = at.unwrap_or(DateTime::from_millis(0));
                Change::Filled(Box::new(Filled { document, at, mark }))
            }
            (_, None) => Change::Nameless(mark),
        }
    }

    fn document(&self) -> Option<DocumentRef> {
        let ns = self.ns.as_ref()?;
        let namespace = Namespace::new(ns.get_str("db").ok()?, ns.get_str("coll").ok()?);
        let key = Document::try_from(self.document_key.clone()?).ok()?;
        Some(DocumentRef { namespace, key })
    }
}

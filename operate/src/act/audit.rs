//! The audit trail: the collection `audit` of the state database, to which records are only added.

use document_outbox::DocumentRef;
use mongodb::{
    Collection,
    bson::{Bson, DateTime, Document, RawDocumentBuf, Uuid, doc},
};
use serde::Serialize;

use super::{Act, ActOutcome, Target};
use crate::{Operator, error::OperateError, list::Row, text};

pub(super) const AUDIT: &str = "audit";

/// Who acts, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Author {
    /// The person.
    pub name: String,
    /// The machine.
    pub host: String,
    /// The program and its version.
    pub tool: String,
    /// The reason.
    pub reason: String,
}

/// The kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AuditKind {
    /// Somebody is about to act.
    Intent,
    /// The result of an intent.
    Outcome,
}

/// Which records to read.
#[derive(Debug, Clone, Default)]
pub struct AuditRequest {
    /// Only about this message.
    pub message: Option<Uuid>,
    /// Only of this operation.
    pub operation: Option<Uuid>,
    /// Only since this time.
    pub since: Option<DateTime>,
    /// The maximum number of acts, the newest first.
    pub limit: i64,
}

/// An intent with its outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditRecord {
    /// The id of the intent.
    pub id: Uuid,
    /// The id that the records of one operation share.
    pub operation: Option<Uuid>,
    /// The act.
    pub act: String,
    /// When it was intended.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub at: Option<DateTime>,
    /// Who, as given.
    pub by: String,
    /// The user of MongoDB.
    pub mongodb_user: Option<String>,
    /// The machine.
    pub host: String,
    /// The reason.
    pub reason: String,
    /// The query.
    pub query: Option<String>,
    /// The collection.
    pub collection: String,
    /// The document's key in canonical extended JSON.
    pub key: serde_json::Value,
    /// The message.
    pub message: Option<Uuid>,
    /// Its type.
    #[serde(rename = "type")]
    pub message_type: Option<String>,
    /// The message as it was shown.
    pub shown: serde_json::Value,
    /// The result; `None` if there is no outcome.
    pub result: Option<String>,
    /// The reason of a failure.
    pub detail: Option<String>,
}

/// What the intents of one operation have in common.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) id: Uuid,
    pub(super) act: Act,
    pub(super) author: Author,
    pub(super) mongodb_user: Option<String>,
    pub(super) query: Option<String>,
}

impl Operation {
    /// The intent to act on a message.
    pub(super) fn intent(&self, id: Uuid, target: &Target, now: DateTime) -> Document {
        let Row { message_type, .. } = &target.shown;
        let mut intent = doc! {
            "_id": id,
            "kind": "intent",
            "operation": self.id,
            "act": self.act.as_str(),
            "at": now,
            "by": &self.author.name,
            "host": &self.author.host,
            "tool": &self.author.tool,
            "reason": &self.author.reason,
            "ns": target.document.namespace.to_string(),
            "key": key_of(&target.document),
            "message": target.shown.id,
            "type": message_type,
            "shown": shown(&target.shown),
        };
        if let Some(user) = &self.mongodb_user {
            intent.insert("mongodb_user", user);
        }
        if let Some(query) = &self.query {
            intent.insert("query", query);
        }
        intent
    }

    /// The outcome of an intent.
    pub(super) fn outcome(&self, intent: Uuid, result: &ActOutcome, now: DateTime) -> Document {
        outcome(self.id, intent, result.as_str(), result.detail(), now)
    }
}

pub(super) fn outcome(
    operation: Uuid,
    intent: Uuid,
    result: &str,
    detail: Option<&str>,
    now: DateTime,
) -> Document {
    let mut outcome = doc! {
        "_id": new_id(),
        "kind": "outcome",
        "operation": operation,
        "intent": intent,
        "at": now,
        "result": result,
    };
    if let Some(detail) = detail {
        outcome.insert("detail", detail);
    }
    outcome
}

/// An id that sorts by time.
pub(super) fn new_id() -> Uuid {
    Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes())
}

/// The document's key. A key that is not valid BSON text is kept as it is shown.
pub(super) fn key_of(document: &DocumentRef) -> Document {
    Document::try_from(document.key()).unwrap_or_else(|_| doc! { "_id": document.subject() })
}

/// The state of a message as it was shown.
fn shown(row: &Row) -> Document {
    doc! {
        "state": row.state.as_str(),
        "created_at": row.created_at,
        "available_at": row.available_at,
        "claimed_by": &row.claimed_by,
        "attempts": row.attempts,
        "claims": row.claims,
        "last_error": &row.last_error,
        "dead_at": row.dead_at,
        "dead_reason": &row.dead_reason,
    }
}

impl Operator {
    pub(super) fn audit_collection(&self) -> Collection<Document> {
        self.evidence(AUDIT)
    }

    /// Adds records, acknowledged by the majority.
    pub(super) async fn record(&self, records: &[Document]) -> Result<(), OperateError> {
        let insert = self.audit_collection().insert_many(records).await;
        insert
            .map(drop)
            .map_err(|error| OperateError::of_mongodb("writing the audit trail".to_owned(), &error))
    }

    /// The user of MongoDB with which this program is logged in.
    pub(super) async fn mongodb_user(&self) -> Result<Option<String>, OperateError> {
        let status = self.client.database("admin").run_command(doc! { "connectionStatus": 1 }).await;
        let status = status.map_err(OperateError::reading("the user"))?;
        let users = status.get_document("authInfo").and_then(|info| info.get_array("authenticatedUsers"));
        let user = users.ok().and_then(|users| users.first()).and_then(Bson::as_document);
        Ok(user.and_then(|user| Some(format!("{}@{}", user.get_str("user").ok()?, user.get_str("db").ok()?))))
    }

    /// Reads acts from the audit trail, the newest first.
    pub async fn audit(&self, request: &AuditRequest) -> Result<Vec<AuditRecord>, OperateError> {
        let mut filter = doc! { "kind": "intent" };
        if let Some(message) = request.message {
            filter.insert("message", message);
        }
        if let Some(operation) = request.operation {
            filter.insert("operation", operation);
        }
        if let Some(since) = request.since {
            filter.insert("at", doc! { "$gte": since });
        }

        let audit = self.audit_collection();
        let found = audit
            .find(filter)
            .sort(doc! { "_id": -1 })
            .limit(request.limit)
            .max_time(self.settings.max_time)
            .await;
        let mut cursor = found.map_err(OperateError::reading("the audit trail"))?;
        let mut intents = Vec::new();
        while cursor.advance().await.map_err(OperateError::reading("the audit trail"))? {
            intents.push(cursor.deserialize_current().map_err(OperateError::reading("the audit trail"))?);
        }
        self.with_outcomes(intents).await
    }

    async fn with_outcomes(&self, intents: Vec<Document>) -> Result<Vec<AuditRecord>, OperateError> {
        let mut records: Vec<AuditRecord> = intents.iter().filter_map(AuditRecord::read).collect();
        let ids: Vec<Uuid> = records.iter().map(|record| record.id).collect();
        let audit = self.audit_collection();
        let found = audit
            .find(doc! { "intent": { "$in": ids } })
            .sort(doc! { "_id": 1 })
            .max_time(self.settings.max_time)
            .await;
        let mut cursor = found.map_err(OperateError::reading("the audit trail"))?;
        while cursor.advance().await.map_err(OperateError::reading("the audit trail"))? {
            let outcome: Document =
                cursor.deserialize_current().map_err(OperateError::reading("the audit trail"))?;
            let intent = outcome.get("intent").and_then(uuid_of);
            if let Some(record) = records.iter_mut().find(|record| Some(record.id) == intent) {
                record.result = text_of(&outcome, "result");
                record.detail = text_of(&outcome, "detail");
            }
        }
        Ok(records)
    }
}

impl AuditRecord {
    fn read(intent: &Document) -> Option<Self> {
        let json = |name: &str| intent.get(name).map_or(serde_json::Value::Null, text::exact);
        Some(Self {
            id: uuid_of(intent.get("_id")?)?,
            operation: intent.get("operation").and_then(uuid_of),
            act: text_of(intent, "act").unwrap_or_default(),
            at: intent.get_datetime("at").ok().copied(),
            by: text_of(intent, "by").unwrap_or_default(),
            mongodb_user: text_of(intent, "mongodb_user"),
            host: text_of(intent, "host").unwrap_or_default(),
            reason: text_of(intent, "reason").unwrap_or_default(),
            query: text_of(intent, "query"),
            collection: text_of(intent, "ns").unwrap_or_default(),
            key: json("key"),
            message: intent.get("message").and_then(uuid_of),
            message_type: text_of(intent, "type"),
            shown: json("shown"),
            result: None,
            detail: None,
        })
    }
}

pub(super) fn uuid_of(value: &Bson) -> Option<Uuid> {
    match value {
        Bson::Binary(binary) => Some(Uuid::from_bytes(binary.bytes.as_slice().try_into().ok()?)),
        _ => None,
    }
}

pub(super) fn text_of(document: &Document, name: &str) -> Option<String> {
    document.get_str(name).ok().map(str::to_owned)
}

/// The document that a record names.
pub(super) fn document_of(record: &Document) -> Option<DocumentRef> {
    let namespace = record.get_str("ns").ok()?.parse().ok()?;
    let key = RawDocumentBuf::try_from(record.get_document("key").ok()?).ok()?;
    Some(DocumentRef::new(namespace, key))
}

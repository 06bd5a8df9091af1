//! Shows one message: its history, its headers, the exact stored values, and the `CloudEvent` that is published.

use document_outbox::{
    DocumentRef,
    deliver::{Envelope, cloudevents},
    internal::Entry,
};
use mongodb::bson::{DateTime, Document};
use serde::Serialize;

use crate::{Operator, error::OperateError, find::FoundMessage, list::Row, redact::Redaction, text};

/// The header with the trace context.
const TRACEPARENT: &str = "traceparent";

/// One message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MessageView {
    /// The fields of the message.
    #[serde(flatten)]
    pub row: Row,
    /// Its history, as far as the entry has it, in the order of time.
    pub timeline: Vec<Happening>,
    /// Sentences about the lease of its document, if the document has no room for a claim.
    pub lease: Vec<String>,
    /// The headers that its sender set.
    pub headers: Vec<(String, String)>,
    /// The id of its trace.
    pub trace_id: Option<String>,
    /// The handlers that have already received it.
    pub delivered_to: Vec<String>,
    /// The stored element in canonical extended JSON, which shows every BSON type.
    pub stored: serde_json::Value,
    /// The `CloudEvent`.
    pub wire: Wire,
}

/// A date of the message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Happening {
    /// The server time.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub at: Option<DateTime>,
    /// What happened then, or is to happen.
    pub what: String,
}

/// A message as it is published.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// To the broker.
    CloudEvent {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
        /// The content type.
        content_type: String,
        /// All headers.
        headers: Vec<(String, String)>,
        /// The body.
        body: serde_json::Value,
    },
    /// To handlers of an application.
    Handlers {
        /// The destination.
        via: String,
    },
    /// It can't be published.
    Unpublishable {
        /// The reason.
        reason: String,
    },
}

impl Operator {
    /// Shows a message that was found.
    pub async fn show(
        &self,
        found: &FoundMessage,
        redaction: &Redaction,
    ) -> Result<Option<MessageView>, OperateError> {
        let now = self.now().await?;
        let lease = self.oversized(&found.document).await?;
        let Some(mut view) = self.view(found, redaction, now) else { return Ok(None) };
        view.lease = lease.map(|lease| lease.sentences(view.row.id, now)).unwrap_or_default();
        Ok(Some(view))
    }

    fn view(&self, found: &FoundMessage, redaction: &Redaction, now: DateTime) -> Option<MessageView> {
        let slot = found.outbox.get(found.index)?;
        let entry = slot.entry()?;
        let mut shown = entry.clone();
        shown.payload = redaction.payload(&entry.message_type, &entry.payload);

        Some(MessageView {
            row: Row::of(&found.document, found.index + 1, slot, now),
            timeline: timeline(entry, now),
            lease: Vec::new(),
            headers: entry.headers.clone().into_iter().collect(),
            trace_id: entry.headers.get(TRACEPARENT).and_then(|header| trace_id(header)),
            delivered_to: entry.delivered_to.clone(),
            stored: stored(found.stored.as_ref(), &shown),
            wire: self.wire(&found.document, &shown),
        })
    }

    fn wire(&self, document: &DocumentRef, entry: &Entry) -> Wire {
        if let Some(via) = &entry.via {
            return Wire::Handlers { via: via.clone() };
        }
        let settings = &self.settings;
        let envelope = Envelope::of(document, entry);
        let made = cloudevents::publication(
            &envelope,
            &settings.messages_exchange,
            settings.payload_format,
            settings.attribute_prefix,
        );
        match made {
            Ok(publication) => Wire::CloudEvent {
                exchange: publication.exchange,
                routing_key: publication.routing_key,
                content_type: publication.content_type,
                headers: publication.headers,
                body: serde_json::from_slice(&publication.body).unwrap_or(serde_json::Value::Null),
            },
            Err(error) => Wire::Unpublishable { reason: error.to_string() },
        }
    }
}

/// The stored element, with the payload that may be shown.
fn stored(element: Option<&Document>, shown: &Entry) -> serde_json::Value {
    let Some(element) = element else { return serde_json::Value::Null };
    let mut element = element.clone();
    if element.contains_key("payload") {
        element.insert("payload", shown.payload.clone());
    }
    text::exact(&element.into())
}

fn timeline(entry: &Entry, now: DateTime) -> Vec<Happening> {
    let mut happenings = Vec::new();
    let mut add = |at: Option<DateTime>, what: String| {
        if at.is_some() {
            happenings.push(Happening { at, what });
        }
    };

    add(entry.created_at, "sent".to_owned());
    let is_ahead = entry.available_at.is_some_and(|at| at > now);
    let failed = match entry.attempts {
        0 => String::new(),
        1 => ", after 1 failed attempt".to_owned(),
        several => format!(", after {several} failed attempts"),
    };
    match (&entry.claimed_by, is_ahead) {
        (Some(by), true) => add(entry.available_at, format!("the claim of {by} ends{failed}")),
        (Some(by), false) => add(entry.available_at, format!("the claim of {by} expired{failed}")),
        (None, true) => add(entry.available_at, format!("due{failed}")),
        (None, false) => add(entry.available_at, format!("due since then{failed}")),
    }
    if let Some(dead) = &entry.dead {
        add(Some(dead.at), format!("died ({}){failed}", dead.reason));
    }
    happenings.sort_by_key(|happening| happening.at);
    happenings
}

/// The trace's id in a `traceparent` header.
fn trace_id(header: &str) -> Option<String> {
    let id = header.split('-').nth(1)?;
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

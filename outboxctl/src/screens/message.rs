//! The screen of `show`.

use mongodb::bson::DateTime;
use outbox_operate::{
    message::{MessageView, Wire},
    text,
};

use super::dash;
use crate::table::wrapped;

/// The width of the names before the values.
const NAMES: usize = 12;

/// Draws a message.
pub fn draw(view: &MessageView, now: DateTime, width: usize) -> String {
    let row = &view.row;
    let mut screen = Screen { text: String::new(), width };
    screen.fact("Message", &row.id.map_or_else(dash, |id| id.to_string()));
    screen.fact("Type", row.message_type.as_deref().unwrap_or("-"));
    screen.fact("State", &row.state.to_string());
    screen.fact("Document", &format!("{}/{}, message {}", row.collection, row.document, row.place));
    if let Some(claim) = &row.claimed_by {
        screen.fact("Claim", claim);
    }
    if row.attempts > 0 || row.claims > 0 {
        let text = format!("{} failed, {} claims without an outcome", row.attempts, row.lost_claims());
        screen.fact("Attempts", &text);
    }
    if let Some(error) = &row.last_error {
        screen.fact("Last error", error);
    }
    if !view.lease.is_empty() {
        screen.fact("Lease", &view.lease.join(" "));
    }
    if let Some(trace) = &view.trace_id {
        screen.fact("Trace", trace);
    }
    if !view.delivered_to.is_empty() {
        screen.fact("Delivered", &format!("to the handlers {}", view.delivered_to.join(", ")));
    }

    screen.heading("Timeline");
    for happening in &view.timeline {
        if let Some(at) = happening.at {
            screen.line(&format!("{}  {} ({})", text::date(at), happening.what, text::relative(now, at)));
        }
    }
    screen.heading("Stored, in extended JSON");
    screen.json(&view.stored);
    screen.wire(&view.wire);
    screen.text
}

struct Screen {
    text: String,
    width: usize,
}

impl Screen {
    fn fact(&mut self, name: &str, value: &str) {
        let indent = " ".repeat(NAMES);
        self.text.push_str(&wrapped(value, &format!("{name:<NAMES$}"), &indent, self.width));
    }

    fn heading(&mut self, text: &str) {
        self.text.push('\n');
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(&wrapped(text, "  ", "    ", self.width));
    }

    /// JSON can be copied, so its lines are not wrapped.
    fn json(&mut self, value: &serde_json::Value) {
        let json = serde_json::to_string_pretty(value).unwrap_or_default();
        for line in json.lines() {
            // JSON escapes control characters, but not the marks that change the direction of text.
            let line = document_outbox::internal::one_line(line, document_outbox::internal::Keep::Nothing);
            self.text.extend(["  ", &*line, "\n"]);
        }
    }

    fn wire(&mut self, wire: &Wire) {
        match wire {
            Wire::CloudEvent { exchange, routing_key, content_type, headers, body } => {
                self.heading("On the wire");
                self.line(&format!("exchange {exchange}, routing key {routing_key}, {content_type}"));
                for (name, value) in headers {
                    self.line(&format!("{name}: {value}"));
                }
                self.json(body);
            }
            Wire::Handlers { via } => {
                self.heading("Delivery");
                self.line(&format!("Not to the broker, but by a process that serves `{via}`."));
            }
            Wire::Unpublishable { reason } => {
                self.heading("On the wire");
                self.line(&format!("It can't be published: {reason}."));
            }
        }
    }
}

//! The indexes for the queries on outboxes.

use mongodb::{IndexModel, bson::doc, options::IndexOptions};

/// Returns the two indexes that a collection with outboxes needs. The first index finds due entries by time and leaves
/// out empty outboxes. The second index finds dead entries by time.
#[must_use]
pub fn indexes() -> [IndexModel; 2] {
    let filled = doc! { "outbox.id": { "$exists": true } };
    let due = IndexOptions::builder()
        .name("outbox_available_at".to_owned())
        .partial_filter_expression(filled)
        .build();
    let dead = IndexOptions::builder().name("outbox_dead_at".to_owned()).sparse(true).build();

    [
        IndexModel::builder().keys(doc! { "outbox.available_at": 1 }).options(due).build(),
        IndexModel::builder().keys(doc! { "outbox.dead_at": 1 }).options(dead).build(),
    ]
}

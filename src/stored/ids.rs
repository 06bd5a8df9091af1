//! Creates ids.

use mongodb::bson::Uuid;

/// Creates an id for a message, a UUID of version 7, so that ids sort by time.
pub(crate) fn new_id() -> Uuid {
    Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes())
}

/// Creates a random UUID for an etag or a claim.
pub(crate) fn new_random() -> Uuid {
    Uuid::from_bytes(uuid::Uuid::new_v4().into_bytes())
}

//! The identity of a cluster: the UUID that the server assigned to the collection of positions.
//!
//! In a restored dump or a copy, the collection of positions has another UUID. Each position records the
//! UUID, so that a copied position is recognised. Commands use the UUID as the cluster's name.

use std::sync::Arc;

use mongodb::bson::Binary;
use parking_lot::Mutex;
use uuid::Uuid;

/// The UUID that was last read; it changes if the collection is recreated. Clones share the value.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lineage(Arc<Mutex<Option<Binary>>>);

impl Lineage {
    /// The UUID; `None` if the collection doesn't exist, or the user has no permission to read its
    /// UUID.
    pub(crate) fn known(&self) -> Option<Binary> {
        self.0.lock().clone()
    }

    pub(crate) fn set(&self, asked: Option<&Binary>) {
        *self.0.lock() = asked.cloned();
    }

    /// The name of the cluster in commands.
    pub(crate) fn cluster(&self) -> Option<Uuid> {
        let uuid = self.known()?.to_uuid().ok()?;
        Some(Uuid::from_bytes(uuid.bytes()))
    }
}

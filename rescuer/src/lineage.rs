//! The identity of a cluster: the UUID that its server gave the collection of positions.
//!
//! A restored dump, or a copy, has another one. Positions are compared with it, and commands name the cluster
//! by it.

use std::sync::Arc;

use mongodb::bson::Binary;
use parking_lot::Mutex;
use uuid::Uuid;

/// The UUID as last read: a recreated collection has another. Shared by its clones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lineage(Arc<Mutex<Option<Binary>>>);

impl Lineage {
    /// `None` if the collection doesn't exist, or the user may not read it.
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

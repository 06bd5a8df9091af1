//! What a cluster is known by: the UUID that its server gave the collection of positions.
//!
//! A dump that is restored, or a copy, has another. Positions are held against it, and commands name the cluster by it.

use std::sync::Arc;

use mongodb::bson::{Binary, Uuid};
use parking_lot::Mutex;

/// The UUID as last asked for: a collection that is dropped and made again has another. Shared by its clones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lineage(Arc<Mutex<Option<Binary>>>);

impl Lineage {
    /// None where the collection isn't there, or the user may not ask.
    pub(crate) fn known(&self) -> Option<Binary> {
        self.0.lock().clone()
    }

    pub(crate) fn set(&self, asked: Option<&Binary>) {
        *self.0.lock() = asked.cloned();
    }

    /// What commands name the cluster by.
    pub(crate) fn cluster(&self) -> Option<Uuid> {
        self.known()?.to_uuid().ok()
    }
}

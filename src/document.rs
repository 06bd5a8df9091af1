//! What the library asks of an aggregate.

use serde::{Serialize, de::DeserializeOwned};

use crate::{deliverable::Ordering, outbox::Outbox};

/// An aggregate kept in one document.
///
/// ```
/// use document_outbox::{Document, Outbox};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Order {
///     #[serde(rename = "_id")]
///     id: String,
///     paid: bool,
///     #[serde(skip)]
///     outbox: Outbox,
/// }
///
/// impl Document for Order {
///     type Id = String;
///     fn id(&self) -> &String {
///         &self.id
///     }
///     fn outbox(&mut self) -> &mut Outbox {
///         &mut self.outbox
///     }
/// }
/// ```
///
/// The document's fields `etag` and `outbox` belong to the library. The struct must not write fields of those names
/// itself; a [`#[serde(flatten)]`](https://serde.rs/attr-flatten.html) map that picks them up is fine.
///
/// **Caveat.** A renamed field with `#[serde(alias = "old")]` makes a document that was saved since hold both names, which serde then
/// refuses. Rename stored fields with an update of the collection.
pub trait Document: Serialize + DeserializeOwned + Send + Sync {
    /// The type of `_id`: anything that encodes to a BSON value MongoDB takes as one.
    type Id: Serialize + Send + Sync;

    /// Whether the messages of one document keep their order, and whether a dead one blocks. The dispatcher and the rescuer know
    /// no types: a collection that isn't [`Ordering::Ordered`] must be named in their settings too (keys `unordered` and
    /// `dead_blocks`).
    const ORDERING: Ordering = Ordering::Ordered;

    /// The aggregate's identity, as in the field `_id`.
    fn id(&self) -> &Self::Id;

    /// The aggregate's outbox.
    fn outbox(&mut self) -> &mut Outbox;
}

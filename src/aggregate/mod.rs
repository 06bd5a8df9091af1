//! The requirements on an aggregate.

pub(crate) mod inbox;
pub(crate) mod message;
pub(crate) mod outbox;

use serde::{Serialize, de::DeserializeOwned};

use crate::{aggregate::outbox::Outbox, stored::deliverable::DeliveryOrder};

/// An aggregate kept in one document.
///
/// ```
/// use document_outbox::{Aggregate, Outbox};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Aggregate)]
/// struct Order {
///     #[serde(rename = "_id")]
///     id: String,
///     paid: bool,
///     #[serde(skip)]
///     outbox: Outbox,
/// }
/// ```
///
/// The [derive](macro@crate::Aggregate) finds the id by its stored name and the outbox by its type, and
/// refuses at compile time most mistakes that are otherwise refused at run time, see below.
///
/// # Identity
/// The key of an aggregate is what its encoding has as `_id`. [`id`](Aggregate::id) must return that field; an insert and a save
/// check it and refuse an aggregate without an `_id`, or with two different ones, before anything is written. A `String`, a
/// number, an `ObjectId`, a `uuid::Uuid` (stored as binary subtype 0), a newtype or a struct can be one as it is, and so can
/// a field with one of the encodings that `bson` and `uuid` bring, such as `uuid_1_as_binary` or `hex_string_as_object_id`.
/// For another encoding, make a type of its own for the id that has it.
///
/// # Other fields
/// The document's fields `etag` and `outbox` belong to the library. The struct must not write fields of those names
/// itself; a [`#[serde(flatten)]`](https://serde.rs/attr-flatten.html) map that picks them up is fine, a struct that denies
/// unknown fields is not.
///
/// Stored fields that the struct doesn't know survive a save: at the top level, in sub-documents, and in those elements of
/// arrays that can be recognised, see [`ELEMENT_KEYS`](Aggregate::ELEMENT_KEYS).
///
/// The stored document must decode as the same struct again. An insert and a save check it. They refuse, for
/// example, a field with `skip_serializing` and no default, and a map that repeats a field's name.
///
/// A field that was renamed with [`#[serde(alias = "old")]`](https://serde.rs/field-attrs.html#alias) is read
/// under its old name, and moves to the new one with the next save that changes its surroundings.
///
/// # By hand
/// Without the derive, for example where serde stores something else than the fields of the struct:
///
/// ```
/// # use document_outbox::{Aggregate, Message, Outbox};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Order { #[serde(rename = "_id")] id: String, #[serde(skip)] outbox: Outbox }
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderPaid { order: String }
/// impl Aggregate for Order {
///     type Id = String;
///
///     fn id(&self) -> &String {
///         &self.id
///     }
///
///     fn outbox(&mut self) -> &mut Outbox {
///         &mut self.outbox
///     }
/// }
///
/// impl Message for OrderPaid {
///     const TYPE: &'static str = "order.paid";
/// }
/// ```
pub trait Aggregate: Serialize + DeserializeOwned + Send + Sync {
    /// The type of `_id`: any type that encodes to a BSON value that MongoDB accepts as `_id`.
    type Id: Serialize + Send + Sync;

    /// Whether the messages of one document keep their order, and whether a dead one blocks. The dispatcher
    /// and the rescuer don't know types: a collection that isn't [`DeliveryOrder::Ordered`] must be named in
    /// their settings too (keys `unordered` and `dead_blocks`).
    const ORDERING: DeliveryOrder = DeliveryOrder::Ordered;

    /// The field that identifies the elements of an array: pairs of a path and a field, such as
    /// `("lines", "sku")`. The path of an array inside the elements of another is `lines.discounts`.
    ///
    /// A save that changes an array keeps the fields that the struct doesn't know in every element that it
    /// recognises: one that is equal in all fields that the struct knows, or has the same value of this field
    /// (without a declaration, of `_id` or `id`), or is in its old place between two neighbours that are
    /// recognised. Others are written without their unknown fields, which are counted
    /// (`outbox_unknown_fields_dropped_total`) and logged once for each path.
    const ELEMENT_KEYS: &'static [(&'static str, &'static str)] = &[];

    /// The aggregate's identity: the field that is stored as `_id`.
    fn id(&self) -> &Self::Id;

    /// The aggregate's outbox.
    fn outbox(&mut self) -> &mut Outbox;
}

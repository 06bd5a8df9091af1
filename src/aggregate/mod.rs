//! The `Aggregate` trait, with the library's requirements on an aggregate.

pub(crate) mod due;
pub(crate) mod inbox;
pub(crate) mod message;
pub(crate) mod outbox;
pub(crate) mod revision;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    aggregate::{inbox::Inbox, outbox::Outbox},
    stored::deliverable::DeliveryOrder,
};

/// An aggregate that is stored as one document.
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
/// The [derive macro](macro@crate::Aggregate) finds the id by its stored name and the outbox by its type. At compile
/// time the macro rejects most mistakes that would otherwise fail at run time.
///
/// # Identity
/// The key of an aggregate is the `_id` in its encoding, and [`id`](Aggregate::id) must return that field. Before
/// anything is written, an insert or a save checks the key, and refuses an aggregate that has no `_id`, or whose `_id`
/// differs from its `id()`. A `String`, a number, an `ObjectId`, a `uuid::Uuid` (stored as binary subtype 0), a
/// newtype or a struct can be the id without further work. A field can also use one of the encodings that `bson` and
/// `uuid` provide, such as `uuid_1_as_binary` or `hex_string_as_object_id`. For any other encoding, define a separate
/// type for the id and implement the encoding on that type.
///
/// # Other fields
/// The document's fields `etag` and `outbox` belong to the library. The struct must not write fields with these names
/// itself. A [`#[serde(flatten)]`](https://serde.rs/attr-flatten.html) map may contain these two fields after a load. A
/// struct that denies unknown fields cannot be loaded.
///
/// Stored fields that the struct doesn't know survive a save at the top level, in sub-documents, and in array elements
/// that can be recognised. [`ELEMENT_KEYS`](Aggregate::ELEMENT_KEYS) describes when an element is recognised.
///
/// The stored document must decode as the same struct again. An insert or a save refuses an aggregate that would not
/// decode, for example because of a field with `skip_serializing` and no default, or because of a map that repeats a
/// field's name.
///
/// A field that was renamed with [`#[serde(alias = "old")]`](https://serde.rs/field-attrs.html#alias) is read under its
/// old name. The next save that changes the document or sub-document that contains the field stores the field under its
/// new name.
///
/// # By hand
/// You can implement the traits without the derive macro, for example if serde stores something other than the struct's
/// fields:
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

    /// Whether the messages of one document keep their order, and whether a dead message blocks the later ones. The
    /// dispatcher and the rescuer don't know your Rust types, so a collection that isn't [`DeliveryOrder::Ordered`]
    /// must also be named in the settings of the dispatcher and the rescuer (keys `unordered` and `dead_blocks`).
    const ORDERING: DeliveryOrder = DeliveryOrder::Ordered;

    /// The fields that identify array elements, as pairs of the array's path and a field of its elements, such as
    /// `("lines", "sku")`. The path of an array inside the elements of another array is written `lines.discounts`.
    ///
    /// A save that changes an array keeps the fields that the struct doesn't know in every element that the save
    /// recognises. An element is recognised if all fields that the struct knows are unchanged, if the identifying
    /// field of the element (by default `_id` or `id`) has the same value, or if the element has its old index between
    /// two recognised neighbours. All other elements are written without their unknown fields; the dropped fields are
    /// counted (`outbox_unknown_fields_dropped_total`) and logged once for each path.
    const ELEMENT_KEYS: &'static [(&'static str, &'static str)] = &[];

    /// Returns the aggregate's identity, the field that is stored as `_id`.
    fn id(&self) -> &Self::Id;

    /// Returns the aggregate's outbox.
    fn outbox(&mut self) -> &mut Outbox;
}

/// An aggregate that receives messages, and has an inbox, which recognises repeats.
///
/// The [derive](macro@crate::Aggregate) implements this trait for a struct with a field of the type
/// [`Inbox`].
pub trait ReceivingAggregate: Aggregate {
    /// The aggregate's inbox.
    fn inbox(&mut self) -> &mut Inbox;
}

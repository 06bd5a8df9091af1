//! The derive macros of `document-outbox`: [`Aggregate`](macro@Aggregate) and [`Message`](macro@Message).
//!
//! `document-outbox` re-exports both macros with its default feature `derive`, so depend on `document-outbox` and not
//! on this crate.
//!
//! # Flow
//! Each macro reads its own helper attribute and serde's attributes, because serde decides what is stored. Each mistake
//! becomes a compiler error at the key or field that contains it, and all mistakes are reported at once.
//!
//! # Caveats
//! A macro sees only its own struct. It can't see into a flattened field, a type alias, or a hand-written `Serialize`.
//! Such cases are checked when the aggregate is saved.

mod aggregate;
mod field;
mod message;
mod options;
mod rename;
mod serde_attributes;
mod suggestion;

use proc_macro::TokenStream;
use syn::{DeriveInput, Error, parse_macro_input};

/// Makes a struct an aggregate. The aggregate's id is the field that serde stores as `_id`, and its outbox is the
/// field of type `Outbox`. The documentation of the trait with the same name has an example.
///
/// Keys of `#[aggregate(…)]` on the struct:
///
/// | key | meaning | default |
/// |---|---|---|
/// | `ordering = "…"` | `ordered`, `dead_blocks` or `unordered`: the trait's `ORDERING` | `ordered` |
/// | `element_keys = "lines.sku, parcels.lines.sku"` | the trait's `ELEMENT_KEYS`: for each array, the path of the array, a dot, and the field that identifies the array's elements | none |
/// | `crate = "…"` | the path of the crate `document-outbox`, if that crate has another name here | `::document_outbox` |
///
/// On a field:
///
/// | key | meaning |
/// |---|---|
/// | `outbox` | the field is the outbox, although its type has another name |
/// | `renamed` | `#[serde(alias = "…")]` is safe on this field, because no running process writes the old name any more |
///
/// # Errors
/// The macro refuses a struct that could not be saved or loaded. The reasons are: no field is stored as `_id`; the id
/// or the inbox is skipped; the outbox is not skipped; a field is stored as `etag` or `outbox`; MongoDB can't update a
/// field of that name; a field is written but can't be read again; or the struct has the attribute
/// `deny_unknown_fields`. For a type that stores something other than its fields (`transparent`, `into`, an enum),
/// implement the trait by hand.
#[proc_macro_derive(Aggregate, attributes(aggregate, serde))]
pub fn derive_aggregate(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    aggregate::derive(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// Makes a struct or an enum a message.
///
/// Each variant of an enum can have its own message type. The documentation of the trait with the same name has
/// examples.
///
/// | key of `#[message(…)]` | meaning |
/// |---|---|
/// | `type = "…"` | the stable name of the message, 1 to 255 bytes; on a struct, an enum or a variant |
/// | `alias = "…"` | a former name of the message; may be given more than once |
/// | `schema = "…"` | the URI of the payload's schema |
/// | `prefix = "…"` | on an enum: each variant's type is this prefix, a dot, and the variant's name in `snake_case` |
/// | `crate = "…"` | the path of the crate `document-outbox`, if that crate has another name here |
///
/// # Errors
/// The macro refuses a message type that is missing, empty or longer than 255 bytes, and two variants with the same
/// message type. It also refuses message types for the variants of an enum if the content doesn't identify the variant
/// (`#[serde(untagged)]`).
#[proc_macro_derive(Message, attributes(message, serde))]
pub fn derive_message(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    message::derive(&input).unwrap_or_else(Error::into_compile_error).into()
}

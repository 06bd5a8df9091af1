//! The derive macros of `document-outbox`: [`Aggregate`](macro@Aggregate) and [`Message`](macro@Message).
//!
//! That crate re-exports them with its default feature `derive`; depend on it, not on this one.
//!
//! # Flow
//! Each macro reads its own helper attribute, and those of serde: serde decides what is stored, so mistakes
//! in the stored form show there. Mistakes become errors of the compiler at the key or the field that they
//! are in, all of them at once.
//!
//! # Caveats
//! A macro sees only its own struct. It can't see into a flattened field, a type alias, or a hand-written
//! `Serialize`. Those are checked when the aggregate is saved.

mod aggregate;
mod field;
mod message;
mod options;
mod rename;
mod serde_attributes;
mod suggestion;

use proc_macro::TokenStream;
use syn::{DeriveInput, Error, parse_macro_input};

/// Makes a struct an aggregate: its id is the field that serde stores as `_id`, its outbox the field of type `Outbox`. The trait of
/// the same name has an example.
///
/// Keys of `#[aggregate(…)]` on the struct:
///
/// | key | meaning | default |
/// |---|---|---|
/// | `ordering = "…"` | `ordered`, `dead_blocks` or `unordered`: the trait's `ORDERING` | `ordered` |
/// | `element_keys = "lines.sku, parcels.lines.sku"` | the trait's `ELEMENT_KEYS`: for each array its path, a dot, and the field that identifies its elements | none |
/// | `crate = "…"` | the path of `document-outbox`, if it has another name | `::document_outbox` |
///
/// On a field:
///
/// | key | says |
/// |---|---|
/// | `outbox` | this is the outbox, although its type has another name |
/// | `renamed` | `#[serde(alias = "…")]` is safe here: no running process writes the old name any more |
///
/// # Errors
/// Refused is what would go wrong when it is saved or loaded: no field `_id`, an id or an inbox that is skipped, an outbox
/// that isn't, fields stored as `etag` or `outbox`, names that MongoDB can't update, fields that are written but can't be read
/// again, `deny_unknown_fields`. Containers that store something else than their fields (`transparent`, `into`, an enum)
/// can implement the trait by hand.
#[proc_macro_derive(Aggregate, attributes(aggregate, serde))]
pub fn derive_aggregate(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    aggregate::derive(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// Makes a struct or an enum a message.
///
/// The variants of an enum can have a type each. The trait of the same name has examples.
///
/// | key of `#[message(…)]` | is |
/// |---|---|
/// | `type = "…"` | the stable name, on a struct, an enum or a variant: 1 to 255 bytes |
/// | `alias = "…"` | a name that it had before; may be given more than once |
/// | `schema = "…"` | where the payload's schema is described |
/// | `prefix = "…"` | on an enum: each variant's type is this, a dot, and its name in `snake_case` |
/// | `crate = "…"` | the path of `document-outbox`, if it has another name |
///
/// # Errors
/// Refused are a type that is missing, empty or longer than 255 bytes, two variants of one type, and an enum
/// whose variants can't be distinguished by their content (`#[serde(untagged)]`) with a type for each
/// variant.
#[proc_macro_derive(Message, attributes(message, serde))]
pub fn derive_message(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    message::derive(&input).unwrap_or_else(Error::into_compile_error).into()
}

//! Converts messages to and from the BSON payloads that are stored in the outbox.
//!
//! # Flow
//! A message is stored in serde's human-readable form: a `uuid::Uuid` as its text, an `IpAddr` as its text, a map's keys as
//! `serde_json` writes them. So the body on the wire is what `serde_json` writes for the same struct. BSON's own types keep
//! their BSON type, and bytes are binary.
//!
//! Reading tries the human-readable form first, then the compact one that BSON serializers of other programs, and of earlier
//! versions of this library, write: there a `uuid::Uuid` is binary and an `IpAddr` is an object.
//!
//! # Guarantees
//! - The stored value can be encoded: a value that BSON cannot hold is an error here, before anything is
//!   written.
//! - A UUID field reads text, binary of subtype 4, and 16 bytes of subtype 0.
//!
//! # Caveats
//! A type whose `Deserialize` doesn't read what its `Serialize` writes stays unreadable.

mod names;
mod read;
mod write;

use mongodb::bson::Bson;
use serde::{Serialize, de::DeserializeOwned};

use self::{
    read::{Uuids, ValueReader},
    write::ValueWriter,
};
use crate::encoding::codec::{self, CodecError};

/// Encodes a message.
pub(crate) fn encode<M: Serialize>(message: &M) -> Result<Bson, CodecError> {
    message.serialize(ValueWriter::new())
}

/// Decodes a message, stored in either form.
pub(crate) fn decode<M: DeserializeOwned>(payload: &Bson) -> Result<M, CodecError> {
    let error = match M::deserialize(ValueReader::new(payload, Uuids::AsStored)) {
        Ok(message) => return Ok(message),
        Err(error) => error,
    };
    if let Ok(message) = codec::decode_value(payload) {
        return Ok(message);
    }

    // If serde buffers a value before it knows its type (flattened structs, tagged enums), a binary UUID can
    // only be read as text.
    M::deserialize(ValueReader::new(payload, Uuids::Text)).map_err(|_| error)
}

#[cfg(test)]
mod tests;

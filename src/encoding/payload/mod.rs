//! Converts messages to and from the BSON payloads that are stored in the outbox.
//!
//! # Flow
//! A message is stored in serde's human-readable form: a `uuid::Uuid` and an `IpAddr` as text, the keys of a map as
//! `serde_json` writes them. So the body on the wire is what `serde_json` writes for the same struct. BSON's own types
//! keep their BSON type, and bytes are stored as binary.
//!
//! Reading tries the human-readable form first, then the compact form that other programs' BSON serializers and earlier
//! versions of this library write. In the compact form a `uuid::Uuid` is binary and an `IpAddr` is an object.
//!
//! # Guarantees
//! - The stored value can be encoded. A value that BSON cannot represent fails here, before anything is written.
//! - A UUID field can be read from text, from binary of subtype 4, and from 16 bytes of subtype 0.
//!
//! # Caveats
//! A message can't be read if its type's `Deserialize` doesn't accept the output of its `Serialize`.

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
pub fn encode<M: Serialize>(message: &M) -> Result<Bson, CodecError> {
    message.serialize(ValueWriter::new())
}

/// Decodes a message that is stored in the human-readable or in the compact form.
pub(crate) fn decode<M: DeserializeOwned>(payload: &Bson) -> Result<M, CodecError> {
    let error = match M::deserialize(ValueReader::new(payload, Uuids::AsStored)) {
        Ok(message) => return Ok(message),
        Err(error) => error,
    };
    if let Ok(message) = codec::decode_value(payload) {
        return Ok(message);
    }

    // If serde buffers a value before its type is known (flattened structs, tagged enums), a binary UUID must be
    // offered as text.
    M::deserialize(ValueReader::new(payload, Uuids::Text)).map_err(|_| error)
}

#[cfg(test)]
mod tests;

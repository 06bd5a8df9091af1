//! Reads the time inside a resume token.
//!
//! A token is a place in the oplog, and the driver treats it as opaque. The time is needed if a position's
//! token can no longer be used although the oplog still covers the token's time. A token is a *key string* in
//! hexadecimal that begins with the cluster time, because the server sorts tokens that way. If a token has another
//! form, no time is returned, and the caller keeps an earlier time, which is also a valid low-water mark.

use mongodb::{bson::Timestamp, change_stream::event::ResumeToken};

/// The type byte of a timestamp in a key string.
const TIMESTAMP: &str = "82";

/// The cluster time of a token, if it can be read.
pub(crate) fn cluster_time(token: &ResumeToken) -> Option<Timestamp> {
    // The driver's type for tokens hides the token's content, but serializes as this content.
    let token = serde_json::to_value(token).ok()?;
    of_key_string(token.get("_data")?.as_str()?)
}

fn of_key_string(data: &str) -> Option<Timestamp> {
    let digits = data.strip_prefix(TIMESTAMP)?.get(..16)?;
    let whole = u64::from_str_radix(digits, 16).ok()?;
    let low = u64::from(u32::MAX);
    Some(Timestamp { time: u32::try_from(whole >> 32).ok()?, increment: u32::try_from(whole & low).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_begins_with_its_time() {
        let token = "82635019A0000000012B042C0100296E5A1004AB1C";
        assert_eq!(of_key_string(token), Some(Timestamp { time: 0x6350_19A0, increment: 1 }));
    }

    #[test]
    fn an_unreadable_token_has_no_time() {
        for data in ["", "82", "8263", "8363501900000000012B", "82zzzzzzzzzzzzzzzz", "ä82635019A000000001"] {
            assert_eq!(of_key_string(data), None, "{data}");
        }
    }
}

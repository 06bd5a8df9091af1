//! Finds where the frames of a protocol end.

/// The protocol of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Amqp,
    Mongo,
}

/// The length in bytes of the greeting with which an AMQP client begins.
const AMQP_GREETING: usize = 8;
/// The number of bytes around an AMQP payload: type, channel, size and the end byte.
const AMQP_AROUND: usize = 8;

impl Protocol {
    /// Returns the length of the first frame in these bytes; `None` while the frame is
    /// incomplete.
    pub(crate) fn first_frame(self, bytes: &[u8]) -> Option<usize> {
        let length = match self {
            Self::Mongo => {
                let length = bytes.first_chunk::<4>()?;
                usize::try_from(i32::from_le_bytes(*length)).unwrap_or(4).max(4)
            }
            Self::Amqp if bytes.starts_with(b"AMQP") => AMQP_GREETING,
            Self::Amqp => {
                let size = bytes.get(3..7)?.first_chunk::<4>()?;
                AMQP_AROUND + usize::try_from(u32::from_be_bytes(*size)).unwrap_or(0)
            }
        };
        (bytes.len() >= length).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_once_complete() {
        let frame = [16, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 99];

        assert_eq!(Protocol::Mongo.first_frame(&frame[..3]), None);
        assert_eq!(Protocol::Mongo.first_frame(&frame[..15]), None);
        assert_eq!(Protocol::Mongo.first_frame(&frame), Some(16));
    }

    #[test]
    fn an_amqp_greeting_is_a_frame() {
        assert_eq!(Protocol::Amqp.first_frame(b"AMQP\0\0\x09\x01more"), Some(8));
        assert_eq!(Protocol::Amqp.first_frame(&[8, 0, 0, 0, 0, 0, 0, 0xCE]), Some(8));
        assert_eq!(Protocol::Amqp.first_frame(&[1, 0, 0, 0, 0, 0, 2, 7, 7, 0xCE]), Some(10));
    }
}

//! Follows the messages of one AMQP connection by reading the connection's frames.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use uuid::Uuid;

use super::traffic::{Answer, Traffic};

/// Reads the frames of one connection without changing them, and notes publishes and answers.
pub(super) struct Follower {
    traffic: Traffic,
    process: String,
    connection: u64,
    channels: HashMap<u16, Followed>,
}

/// The state of one channel of a connection.
#[derive(Default)]
struct Followed {
    /// The delivery tag that the next publish gets; `None` before the client has enabled confirms.
    next_tag: Option<u64>,
    /// Between the frame of a publish and its content header: true if a message is published, false if a command is published.
    /// Otherwise `None`.
    is_publishing: Option<bool>,
    /// Whether RabbitMQ has begun to return a message, and the content header of that message has not passed yet.
    is_returning: bool,
    unconfirmed: BTreeMap<u64, Uuid>,
}

impl Follower {
    pub(super) fn new(traffic: Traffic, process: &str, connection: u64) -> Self {
        Self { traffic, process: process.to_owned(), connection, channels: HashMap::new() }
    }

    /// Reads one whole frame. The frames of each direction must be passed in their order.
    pub(super) fn follow(&mut self, frame: &[u8], to_server: bool) {
        let mut frame = Cursor(frame);
        let (Some(kind), Some(channel), Some(_size)) = (frame.u8(), frame.u16(), frame.u32()) else { return };

        match (kind, to_server) {
            (1, true) => self.sent(channel, frame),
            (1, false) => self.received(channel, frame),
            (2, true) => self.header_sent(channel, frame),
            (2, false) => self.header_received(channel, frame),
            _ => {}
        }
    }

    fn sent(&mut self, number: u16, mut frame: Cursor<'_>) {
        let channel = self.channels.entry(number).or_default();
        match (frame.u16(), frame.u16()) {
            (Some(20), Some(10)) => *channel = Followed::default(),
            (Some(85), Some(10)) => channel.next_tag = Some(1),
            (Some(60), Some(40)) => {
                let _ticket = frame.u16();
                let exchange = frame.short_string().unwrap_or_default();
                channel.is_publishing = Some(exchange.ends_with(b".messages"));
            }
            _ => {}
        }
    }

    fn header_sent(&mut self, number: u16, frame: Cursor<'_>) {
        let channel = self.channels.entry(number).or_default();
        let Some(is_message) = channel.is_publishing.take() else { return };
        let tag = channel.next_tag;
        channel.next_tag = tag.map(|tag| tag + 1);

        if is_message && let Some(id) = message_id(frame) {
            if let Some(tag) = tag {
                channel.unconfirmed.insert(tag, id);
            }
            self.traffic.published(id, &self.process, self.connection);
        }
    }

    fn received(&mut self, number: u16, mut frame: Cursor<'_>) {
        match (frame.u16(), frame.u16()) {
            (Some(60), Some(80)) => self.answered(number, frame, Answer::Confirmed(Instant::now())),
            (Some(60), Some(120)) => self.answered(number, frame, Answer::Refused(Instant::now())),
            (Some(60), Some(50)) => self.channels.entry(number).or_default().is_returning = true,
            (Some(20), Some(40)) | (Some(10), Some(50)) => {
                let code = frame.u16().unwrap_or_default();
                if code != 200 {
                    self.traffic.closed_by_broker(&self.process, code);
                }
            }
            (Some(10), Some(60)) => self.traffic.was_blocked(&self.process),
            _ => {}
        }
    }

    fn header_received(&mut self, number: u16, frame: Cursor<'_>) {
        let channel = self.channels.entry(number).or_default();
        let is_returning = std::mem::take(&mut channel.is_returning);
        if is_returning && let Some(id) = message_id(frame) {
            self.traffic.answered(id, self.connection, Answer::Returned(Instant::now()));
        }
    }

    fn answered(&mut self, number: u16, mut frame: Cursor<'_>, answer: Answer) {
        let (Some(tag), Some(bits)) = (frame.u64(), frame.u8()) else { return };
        let channel = self.channels.entry(number).or_default();

        let first = if bits & 1 == 1 { 0 } else { tag };
        let tags: Vec<_> = channel.unconfirmed.range(first..=tag).map(|(tag, _)| *tag).collect();
        for tag in tags {
            if let Some(id) = channel.unconfirmed.remove(&tag) {
                self.traffic.answered(id, self.connection, answer);
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.traffic.connection_ended(&self.process);
    }
}

/// Reads the `message_id` from a content header. The given bytes begin with the class of the header.
fn message_id(mut frame: Cursor<'_>) -> Option<Uuid> {
    let (_class, _weight, _size) = (frame.u16()?, frame.u16()?, frame.u64()?);
    let flags = frame.u16()?;
    let has = |bit: u16| flags & (1 << bit) != 0;

    for bit in [15, 14] {
        if has(bit) {
            frame.short_string()?;
        }
    }
    if has(13) {
        let size = frame.u32()?;
        frame.take(usize::try_from(size).ok()?)?;
    }
    for bit in [12, 11] {
        if has(bit) {
            frame.u8()?;
        }
    }
    for bit in [10, 9, 8] {
        if has(bit) {
            frame.short_string()?;
        }
    }
    if !has(7) {
        return None;
    }
    Uuid::try_parse_ascii(frame.short_string()?).ok()
}

/// Reads values from the front of a byte slice.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    fn short_string(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "018bcfe5-6878-7e5e-9d8b-1f5a4d6a9c11";

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap();
        [&[kind, 0, 1][..], &size.to_be_bytes(), payload, &[0xCE]].concat()
    }

    fn publish() -> [Vec<u8>; 2] {
        let method = [&[0, 60, 0, 40, 0, 0, 12][..], b"run.messages", &[1], b"k", &[1]].concat();
        let header =
            [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2][..], &[0x80, 0x80], &[1], b"j", &[36], ID.as_bytes()];
        [frame(1, &method), frame(2, &header.concat())]
    }

    fn followed(answers: &[Vec<u8>]) -> Answer {
        let traffic = Traffic::default();
        let mut follower = Follower::new(traffic.clone(), "app", 1);
        follower.follow(&frame(1, &[0, 85, 0, 10, 0]), true);
        for sent in publish() {
            follower.follow(&sent, true);
        }
        for answer in answers {
            follower.follow(answer, false);
        }
        traffic.publishes(Uuid::parse_str(ID).unwrap())[0].answer
    }

    #[test]
    fn a_confirm_belongs_to_its_message() {
        let ack = |tag: u8| frame(1, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, tag, 0]);

        assert!(matches!(followed(&[ack(1)]), Answer::Confirmed(_)));
        assert_eq!(followed(&[ack(2)]), Answer::None);
    }

    #[test]
    fn a_multiple_refusal_reaches_earlier_messages() {
        let nack = frame(1, &[0, 60, 0, 120, 0, 0, 0, 0, 0, 0, 0, 9, 1]);

        assert!(matches!(followed(&[nack]), Answer::Refused(_)));
    }

    #[test]
    fn a_returned_message_stays_returned() {
        let method = frame(1, &[0, 60, 0, 50, 1, 56, 0, 0, 0]);
        let [_, header] = publish();
        let ack = frame(1, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]);

        assert!(matches!(followed(&[method, header, ack]), Answer::Returned(_)));
    }
}

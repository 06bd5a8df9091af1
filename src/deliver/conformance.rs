//! A test suite that every [`Deliver`] must pass, for use in your own tests.
//!
//! Implement [`Harness`] for the deliverer together with a real receiver, and call [`check`]:
//!
//! ```ignore
//! #[tokio::test]
//! async fn the_webhook_keeps_what_a_deliverer_promises() {
//!     conformance::check(&WebhookHarness::start().await).await;
//! }
//! ```
//!
//! # Guarantees tested
//! - A deliverer returns one answer per message of the window, in the window's order.
//! - The deliverer answers `Delivered` only if the receiver has the message, and never if the receiver rejected the
//!   message or could not be reached.
//! - An error in one message doesn't affect other messages, whether in the same window or in other windows.
//! - A message can be delivered again, with the same id.
//! - The deliverer never panics, whatever a document contains, and never waits forever.
//! - After a delivery was dropped halfway, the deliverer is still usable.
//! - The deliverer's error texts give the reason and never include any of the payload.
//! - While the deliverer is unavailable, no attempt is counted. The deliverer becomes available again without help.
//! - The deliverer serves the `via` that it stores with messages, and no unknown `via`.
//!
//! # Caveats
//! This suite can't test whether a confirmed message survives a crash of the receiver.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, future::join_all};
use mongodb::{
    Namespace,
    bson::{self, Bson, DateTime, Timestamp, doc},
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{Answer, Deliver, Envelope, Outcome, json};
use crate::stored::document_ref::DocumentRef;

const ONE_ANSWER: &str = "one answer per message of the window";
const TRULY: &str = "`Delivered` only if the receiver has the message";
const IN_ORDER: &str = "answers keep the window's order, and an error in one message doesn't affect others";
const REPEATABLE: &str = "a message can be delivered again, with the same id";
const NO_PANIC: &str = "the deliverer does not panic";
const NOT_FOR_EVER: &str = "the deliverer does not wait forever";
const DROPPABLE: &str = "the deliverer is usable after a delivery was dropped halfway";
const DISCREET: &str = "error texts give the reason and never include any of the payload";
const FREE_OF_CHARGE: &str = "no attempt is counted while the deliverer is unavailable";
const RECOVERS: &str = "the deliverer becomes available again without help";
const SERVES: &str = "the deliverer serves the `via` that it stores with messages, and no unknown `via`";
/// The pause between two tries if a deliverer says that it is available but isn't.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
/// A part of the payloads that must not appear in error texts.
const SECRET: &str = "conformance-secret-0f8e";

/// A deliverer to test, together with the receiver at its other end.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Returns the deliverer, which must be available.
    fn deliverer(&self) -> &dyn Deliver;

    /// Returns a message that the receiver accepts; [`envelope`] can create one. The suite replaces the
    /// message's id and document.
    fn accepted(&self) -> Envelope;

    /// Returns a message that the receiver gets but rejects, for example a message of a type that the receiver fails
    /// on. If the method returns `None`, rejected messages are not tested.
    fn rejected(&self) -> Option<Envelope>;

    /// Returns the ids of all messages that the receiver has accepted so far.
    async fn arrived(&self) -> Vec<Uuid>;

    /// Makes the receiver unreachable. If the deliverer can notice the cut without a delivery, this method returns
    /// only after the deliverer has noticed it. Returns false if the receiver can't be made unreachable; in that case
    /// unavailability is not tested.
    async fn cut_off(&self) -> bool {
        false
    }

    /// Makes the receiver reachable again.
    async fn restore(&self) {}

    /// The time after which a wait counts as endless.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// Creates a message of this type with `payload`, from an invented document.
pub fn envelope(message_type: impl Into<String>, payload: impl Into<Bson>) -> Envelope {
    let id = Uuid::now_v7();
    Envelope {
        document: document(id),
        id,
        message_type: message_type.into(),
        payload: payload.into(),
        headers: BTreeMap::from([("tenant".to_owned(), "north".to_owned())]),
        via: None,
        created_at: Some(DateTime::now()),
        attempts: 0,
        delivered_to: Vec::new(),
    }
}

/// Tests every guarantee that can be tested with this harness.
///
/// # Panics
/// Panics if a guarantee is broken, with a text that begins with that guarantee.
pub async fn check(harness: &dyn Harness) {
    let suite = Suite(harness);
    suite.answers_in_place().await;
    suite.delivered_is_arrived().await;
    suite.rejected_is_not_delivered().await;
    suite.repeats().await;
    suite.concurrent_windows().await;
    suite.any_payload().await;
    suite.dropped_halfway().await;
    suite.via_is_served();
    suite.unavailable().await;
}

struct Suite<'a>(&'a dyn Harness);

impl Suite<'_> {
    fn accepted(&self) -> Envelope {
        renewed(self.0.accepted())
    }

    fn window(&self, size: usize) -> Vec<Envelope> {
        (0..size).map(|_| self.accepted()).collect()
    }

    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let delivery = AssertUnwindSafe(self.0.deliverer().deliver(window)).catch_unwind();
        let Ok(ended) = timeout(self.0.patience(), delivery).await else {
            panic!("{NOT_FOR_EVER}: no answer in {:?}", self.0.patience())
        };
        let Ok(answers) = ended else { panic!("{NO_PANIC}: it panicked on a window of {}", window.len()) };
        let (wanted, given) = (window.len(), answers.len());
        assert!(wanted == given, "{ONE_ANSWER}: {given} for a window of {wanted}");
        for answer in &answers {
            if let Some(text) = text_of(&answer.outcome) {
                assert!(!text.trim().is_empty(), "{DISCREET}: a text is empty");
                assert!(!text.contains(SECRET), "{DISCREET}: {text}");
            }
        }
        answers
    }

    async fn deliver_all(&self, window: &[Envelope], guarantee: &str) {
        self.must_be_delivered(window, guarantee).await;
        self.must_have_arrived(window).await;
    }

    async fn must_be_delivered(&self, window: &[Envelope], guarantee: &str) {
        let answers = self.deliver(window).await;
        let mut outcomes = answers.into_iter().map(|answer| answer.outcome).enumerate();
        if let Some((place, outcome)) = outcomes.find(|(_, outcome)| *outcome != Outcome::Delivered) {
            panic!("{guarantee}: message {place} of the window should be delivered, but is {outcome:?}");
        }
    }

    async fn must_have_arrived(&self, window: &[Envelope]) {
        let arrived = self.0.arrived().await;
        let missing = window.iter().filter(|envelope| !arrived.contains(&envelope.id)).count();
        assert!(missing == 0, "{TRULY}: {missing} of {} never arrived", window.len());
    }

    async fn answers_in_place(&self) {
        for size in [0, 1, 50] {
            self.deliver(&self.window(size)).await;
        }
    }

    async fn delivered_is_arrived(&self) {
        self.deliver_all(&self.window(1), TRULY).await;
        self.deliver_all(&self.window(50), TRULY).await;
    }

    /// Rejected messages are placed so that reversed or sorted answers are detected.
    async fn rejected_is_not_delivered(&self) {
        for rejected_at in [vec![0], vec![1, 2, 6], vec![0, 1, 2, 3, 4, 5, 6, 7, 8]] {
            let mut window = self.window(9);
            for place in &rejected_at {
                let Some(rejected) = self.0.rejected() else { return };
                window[*place] = renewed(rejected);
            }
            let answers = self.deliver(&window).await;
            for (place, answer) in answers.iter().enumerate() {
                match (rejected_at.contains(&place), &answer.outcome) {
                    (true, Outcome::Delivered) if rejected_at.len() == window.len() => {
                        panic!("{TRULY}: a rejected message was reported as delivered")
                    }
                    (true, Outcome::Delivered) => {
                        panic!("{IN_ORDER}: rejected message {place} was reported as delivered")
                    }
                    (false, outcome) if *outcome != Outcome::Delivered => {
                        panic!(
                            "{IN_ORDER}: message {place} should be delivered next to {rejected_at:?}, but is {outcome:?}"
                        )
                    }
                    _ => {}
                }
            }
        }
    }

    async fn repeats(&self) {
        let mut message = self.accepted();
        self.deliver_all(std::slice::from_ref(&message), REPEATABLE).await;
        message.attempts = 1;
        self.deliver_all(&[message], REPEATABLE).await;
    }

    async fn concurrent_windows(&self) {
        let windows: Vec<_> = (0..8).map(|_| self.window(7)).collect();
        let deliveries = windows.iter().map(|window| self.must_be_delivered(window, IN_ORDER));
        join_all(deliveries).await;
        self.must_have_arrived(&windows.concat()).await;
    }

    async fn any_payload(&self) {
        for payload in odd_payloads() {
            let mut window = self.window(3);
            window[1].payload = payload;
            window[1].headers = BTreeMap::from([("☃ \r\n".to_owned(), "☃\u{0}\r\n".repeat(20))]);
            window[1].created_at = Some(DateTime::MAX);
            let namespace = window[1].document.namespace.clone();
            window[1].document = DocumentRef::by_id(namespace, doc! { "nested": [DateTime::MIN, "\r\n/ %"] });
            let answers = self.deliver(&window).await;
            for place in [0, 2] {
                let outcome = &answers[place].outcome;
                let fine = *outcome == Outcome::Delivered;
                assert!(fine, "{IN_ORDER}: next to an unusual message, another message is {outcome:?}");
            }
            if answers[1].outcome == Outcome::Delivered {
                self.must_have_arrived(&window[1..2]).await;
            }
        }
    }

    async fn dropped_halfway(&self) {
        for _ in 0..10 {
            let window = self.window(5);
            // Poll the delivery once, then drop the delivery.
            let _ = self.0.deliverer().deliver(&window).now_or_never();
        }
        self.deliver_all(&self.window(5), DROPPABLE).await;
    }

    fn via_is_served(&self) {
        let deliverer = self.0.deliverer();
        let envelope = self.0.accepted();
        let via = deliverer.via(&envelope.message_type);
        assert!(deliverer.serves(via), "{SERVES}: {via:?} is not served");
        let stored = envelope.via.as_deref();
        assert!(deliverer.serves(stored), "{SERVES}: {stored:?} of the harness's message is not served");
        assert!(!deliverer.serves(Some(SECRET)), "{SERVES}: an unknown `via` is served");
    }

    async fn unavailable(&self) {
        if !self.0.cut_off().await {
            return;
        }
        for _ in 0..3 {
            for answer in self.deliver(&self.window(3)).await {
                let free = matches!(answer.outcome, Outcome::Unavailable(_));
                assert!(free, "{FREE_OF_CHARGE}: without a receiver, a message is {:?}", answer.outcome);
            }
        }
        self.0.restore().await;
        let available = timeout(self.0.patience(), self.become_available()).await;
        assert!(available.is_ok(), "{RECOVERS}: still unavailable after {:?}", self.0.patience());
    }

    /// Waits until a delivery succeeds, because `available` can complete although the destination is still unavailable.
    async fn become_available(&self) {
        loop {
            self.0.deliverer().available().await;
            let window = self.window(3);
            let answers = self.deliver(&window).await;
            if answers.iter().all(|answer| answer.outcome == Outcome::Delivered) {
                return self.must_have_arrived(&window).await;
            }
            sleep(BETWEEN_LOOKS).await;
        }
    }
}

/// Returns the same message with a new id, as a message of another document.
fn renewed(mut envelope: Envelope) -> Envelope {
    envelope.id = Uuid::now_v7();
    envelope.document = document(envelope.id);
    envelope
}

/// Returns an invented document for a single message.
fn document(message: Uuid) -> DocumentRef {
    let id = bson::Uuid::from_bytes(message.into_bytes());
    DocumentRef::by_id(Namespace::new("conformance", "documents"), id)
}

fn text_of(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Delivered => None,
        Outcome::Transient(text)
        | Outcome::Unroutable(text)
        | Outcome::Permanent(text)
        | Outcome::Unavailable(text) => Some(text),
    }
}

/// Payloads that a document may contain although current programs don't write them.
fn odd_payloads() -> Vec<Bson> {
    let nested = (0..json::MAX_DEPTH).fold(Bson::from(SECRET), |inner, _| Bson::Array(vec![inner]));
    vec![
        Bson::Null,
        Bson::Undefined,
        Bson::MinKey,
        SECRET.into(),
        Bson::Symbol(SECRET.into()),
        Bson::JavaScriptCode(SECRET.into()),
        Bson::Double(f64::NAN),
        Bson::Timestamp(Timestamp { time: u32::MAX, increment: u32::MAX }),
        DateTime::MIN.into(),
        Bson::Array(vec![SECRET.into(); 1000]),
        doc! { "": SECRET, "$set": { "a.b": [SECRET] }, "\u{0}": Bson::MaxKey }.into(),
        doc! { "order": { SECRET: 1 } }.into(),
        doc! { "order": SECRET }.into(),
        nested,
    ]
}

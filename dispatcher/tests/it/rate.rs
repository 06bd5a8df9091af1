//! Tests the rate limit on a backlog, with a real broker.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use document_outbox::{
    RetryPolicy,
    deliver::{Answer, Deliver, Envelope, Outcome, RabbitMq},
    dispatch::Processed,
};
use lapin::options::ExchangeDeleteOptions;
use mongodb::bson::{Document, doc};
use outbox_dispatcher::{DispatcherEvent, Rate};
use tokio::sync::watch;

use crate::{
    scene::{Scene, quick_retry},
    support::{LONG, Recorder},
};

/// Records when each confirmed message was sent, rather than when it was confirmed or consumed.
/// After a pause that is not caused by the limiter, the broker may confirm, or the consumer may receive, several
/// messages together that were published one by one.
struct Clocked {
    rabbitmq: RabbitMq,
    confirmed: watch::Sender<Vec<Instant>>,
}

#[async_trait]
impl Deliver for Clocked {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let sent = Instant::now();
        let answers = self.rabbitmq.deliver(window).await;
        let confirmed = answers.iter().filter(|answer| answer.outcome == Outcome::Delivered).count();
        self.confirmed.send_modify(|times| times.resize(times.len() + confirmed, sent));
        answers
    }

    fn is_available(&self) -> bool {
        self.rabbitmq.is_available()
    }

    async fn available(&self) {
        self.rabbitmq.available().await;
    }
}

/// At a `rate` of 500/s, no more than 550 messages are sent in any second. A slow machine sends fewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_is_delivered_at_the_rate() {
    const MOST: usize = 550;
    let scene = Scene::set().await;
    let single = (0..1_200).map(|nth| (format!("single-{nth}"), 1));
    let several = (0..70).map(|nth| (format!("several-{nth}"), 10));
    let messages = 1_200 + 700 + 100;
    scene.strand(single.chain(several).chain([("long".to_owned(), 100)])).await;
    let (confirmed, mut times) = watch::channel(Vec::new());
    let clocked = Clocked { rabbitmq: scene.rabbitmq(&scene.broker).await, confirmed };
    let mut settings = scene.settings();
    settings.rate = Some(Rate::per_second(500).unwrap());
    let worker = scene.start_with(clocked, RetryPolicy::default(), settings);
    let all = times.wait_for(|times| times.len() >= messages);
    let times = tokio::time::timeout(2 * LONG, all).await.expect("all are delivered").unwrap().clone();
    let second = |from: &Instant| {
        times.iter().filter(|at| (*from..*from + Duration::from_secs(1)).contains(*at)).count()
    };
    let most = times.iter().map(second).max().unwrap();
    assert!(most <= MOST, "{most} messages in one second");
    let throttled = worker.running.status().snapshot().throttled_seconds;
    assert!(throttled > 0.0, "otherwise the limit was never reached");
    worker.running.stop().await;
    assert_eq!(times.len(), messages, "each was delivered once");
    let filled = doc! { "outbox.0": { "$exists": true } };
    assert_eq!(scene.test.orders().count_documents(filled).await.unwrap(), 0);
    let delete = ExchangeDeleteOptions::default();
    scene.outside.exchange_delete(scene.messages().into(), delete).await.unwrap();
    scene.strike().await;
}

/// A message that waits for the rate is not claimed, and a stop doesn't wait for it.
#[tokio::test]
async fn a_message_waiting_for_the_rate_is_unclaimed() {
    const MESSAGES: usize = 20;
    let scene = Scene::set().await;
    scene.strand([("o-1".to_owned(), MESSAGES as i64)]).await;
    let recorder = Recorder::default();
    let mut settings = scene.settings();
    settings.rate = Some(Rate::per_second(1).unwrap());
    settings.unordered = settings.watch.clone();
    let mut worker = scene.start_with(recorder.clone(), quick_retry(), settings);
    recorder.wait_delivered(1).await;
    let cleared = |stored: &Document| stored.get_array("outbox").unwrap().len() < MESSAGES;
    let stored = scene.test.wait_until("o-1", cleared).await;
    let waiting = stored.get_array("outbox").unwrap();
    assert!(!waiting.is_empty(), "otherwise the test proves nothing");
    for entry in waiting {
        assert_eq!(entry.as_document().unwrap().get("claimed_by"), None);
    }
    // All messages could be delivered within the grace period of 25 s, but the stop must not wait for these
    // deliveries.
    worker.running.stop().await;
    let given_back = loop {
        match worker.events.recv().await.unwrap() {
            DispatcherEvent::GivenBack { .. } => break true,
            DispatcherEvent::Finished { .. } => break false,
            _ => {}
        }
    };
    assert!(given_back);
    assert!(!scene.is_cleared("o-1").await);
    let next = Recorder::default();
    let mut worker = scene.start(next.clone());
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.delivered().len() + next.delivered().len(), MESSAGES);
    worker.running.stop().await;
    scene.strike().await;
}

/// Even with a low rate, the worker takes only commands that can have their turn while they are kept.
#[tokio::test]
async fn a_low_rate_leaves_no_command_undelivered() {
    const DOCUMENTS: usize = 180;
    let scene = Scene::set().await;
    scene.strand((0..DOCUMENTS).map(|n| (format!("o-{n}"), 1))).await;
    let mut settings = scene.settings();
    settings.rate = Some(Rate::per_second(20).unwrap());
    // Delivering all messages takes longer than `keep_within`. Delivering the messages of the commands that
    // the worker holds at one time takes much less, so that even a busy machine is fast enough.
    settings.keep_within = Duration::from_secs(6);
    let mut worker = scene.start_with(Recorder::default(), quick_retry(), settings);
    for _ in 0..DOCUMENTS {
        let ended = worker.wait(|event| match event {
            DispatcherEvent::Finished { processed, .. } => Some(Ok(*processed)),
            DispatcherEvent::LeftToSweep { why, .. } => Some(Err(why.clone())),
            _ => None,
        });
        assert_eq!(ended.await, Ok(Processed::Done));
    }
    worker.running.stop().await;
    scene.strike().await;
}

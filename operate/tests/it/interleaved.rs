//! Any sequence of saves, deliveries and acts keeps the promises: no message is lost or invented (P1, P2), untouched
//! messages keep their order (P4), and each act has its record.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{
    DeliveryOrder, DocumentRef, RetryPolicy,
    deliver::{Answer, Deliver, Envelope, Outcome},
    dispatch::{Processor, ProcessorSettings},
};
use fastrand::Rng;
use mongodb::bson::{Uuid, doc};
use outbox_operate::{
    MessageState,
    act::{Act, ActRequest, AuditRequest, Author},
    list::Row,
};
use outbox_service::CancellationToken;

use crate::scene::{LONG, Scene, entry, id_of};

const STEPS: usize = 50;

/// A destination that delivers, fails and refuses at random.
struct Unsteady {
    rng: Mutex<Rng>,
    delivered: Mutex<Vec<Uuid>>,
    is_steady: Mutex<bool>,
}

#[async_trait]
impl Deliver for Unsteady {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let mut answers = Vec::new();
        for envelope in window {
            let fate = if *self.is_steady.lock().unwrap() { 0 } else { self.rng.lock().unwrap().u8(0..5) };
            let outcome = match fate {
                0..=2 => Outcome::Delivered,
                3 => Outcome::Transient("busy".into()),
                _ => Outcome::Permanent("no".into()),
            };
            if outcome == Outcome::Delivered {
                self.delivered.lock().unwrap().push(Uuid::from_bytes(envelope.id.into_bytes()));
            }
            answers.push(outcome.into());
        }
        answers
    }
}

struct Run {
    scene: Scene,
    rng: Rng,
    deliverer: Arc<Unsteady>,
    processor: Processor,
    sent: Vec<Uuid>,
    archived: Vec<Uuid>,
    /// The messages that an operator acted on, or that were dead at some time.
    touched: BTreeSet<Uuid>,
    acts: usize,
}

impl Run {
    async fn new(seed: u64) -> Self {
        let scene = Scene::new().await;
        scene.insert("o-1", Vec::<mongodb::bson::Bson>::new()).await;
        let deliverer = Arc::new(Unsteady {
            rng: Mutex::new(Rng::with_seed(seed)),
            delivered: Mutex::default(),
            is_steady: Mutex::default(),
        });
        let mut retry = RetryPolicy::default();
        (retry.max_attempts, retry.quick_tries) = (2, 0);
        // Longer than a few steps, so that a failed message blocks later ones.
        (retry.backoff_min, retry.backoff_max) = (Duration::from_millis(300), Duration::from_millis(300));
        let settings = ProcessorSettings::default().with(|settings| settings.retry = retry);
        let processor = Processor::new(scene.client.clone(), deliverer.clone(), settings);
        Self {
            scene,
            rng: Rng::with_seed(seed),
            deliverer,
            processor,
            sent: Vec::new(),
            archived: Vec::new(),
            touched: BTreeSet::new(),
            acts: 0,
        }
    }

    async fn step(&mut self) {
        match self.rng.u8(0..10) {
            0..=2 => self.send().await,
            3..=5 => self.process().await,
            6 => self.act(Act::Replay).await,
            7 => self.act(Act::Discard).await,
            8 => self.restore().await,
            _ => self.act(Act::Kill).await,
        }
    }

    async fn send(&mut self) {
        let now = self.scene.operator.now().await.unwrap();
        let entry = entry("a", doc! { "created_at": now, "available_at": now });
        self.sent.push(id_of(&entry));
        let push = doc! { "$push": { "outbox": entry } };
        self.scene.orders().update_one(doc! { "_id": "o-1" }, push).await.unwrap();
    }

    async fn process(&mut self) {
        let document = DocumentRef::by_id(self.scene.namespace(), "o-1");
        let stop = CancellationToken::new();
        self.processor.process(&document, DeliveryOrder::Ordered, &stop).await.unwrap();
        let dead = self.rows().await.into_iter().filter(|row| row.state == MessageState::Dead);
        self.touched.extend(dead.filter_map(|row| row.id));
    }

    async fn rows(&self) -> Vec<Row> {
        self.scene.list("doc:o-1").await.rows
    }

    /// Acts on one message that the act takes.
    async fn act(&mut self, act: Act) {
        let takes: &[MessageState] = match act {
            Act::Kill => &[MessageState::Due, MessageState::Retrying],
            _ => &[MessageState::Dead],
        };
        let rows: Vec<Row> = self.rows().await.into_iter().filter(|row| takes.contains(&row.state)).collect();
        let Some(id) = self.rng.choice(&rows).and_then(|row| row.id) else { return };

        let request = ActRequest::new(act, format!("id:{id} doc:o-1").parse().unwrap());
        let sum = self.scene.operator.execute(&request, author(), |_| {}).await.unwrap();
        assert_eq!((sum.done, sum.failed), (1, 0), "{act}");
        self.acts += 1;
        self.touched.insert(id);
        if act == Act::Discard {
            self.archived.push(id);
        }
    }

    async fn restore(&mut self) {
        if self.archived.is_empty() {
            return;
        }
        let id = self.archived.swap_remove(self.rng.usize(0..self.archived.len()));
        assert_eq!(self.scene.operator.restore(&[id], author(), |_| {}).await.unwrap().done, 1);
        self.acts += 1;
    }

    /// Restores and replays everything, and delivers it.
    async fn finish(&mut self) {
        *self.deliverer.is_steady.lock().unwrap() = true;
        while !self.archived.is_empty() {
            self.restore().await;
        }
        while self.rows().await.iter().any(|row| row.state == MessageState::Dead) {
            self.act(Act::Replay).await;
        }
        while !self.rows().await.is_empty() {
            self.process().await;
        }
    }
}

fn author() -> Author {
    Author { name: "alice".into(), host: "here".into(), tool: "test".into(), reason: "a test".into() }
}

#[tokio::test]
async fn acts_between_deliveries_keep_the_promises() {
    for seed in 0..4 {
        let mut run = Run::new(seed).await;
        for _ in 0..STEPS {
            run.step().await;
        }
        tokio::time::timeout(LONG, run.finish()).await.expect("every message is delivered");

        let delivered = run.deliverer.delivered.lock().unwrap().clone();
        let distinct: BTreeSet<Uuid> = delivered.iter().copied().collect();
        assert_eq!(distinct, run.sent.iter().copied().collect(), "P1 and P2, seed {seed}");
        assert_eq!(distinct.len(), delivered.len(), "each once, seed {seed}");
        let in_order = |ids: &[Uuid]| -> Vec<Uuid> {
            ids.iter().copied().filter(|id| !run.touched.contains(id)).collect()
        };
        assert_eq!(in_order(&delivered), in_order(&run.sent), "P4, seed {seed}");

        let request = AuditRequest { limit: 10_000, ..AuditRequest::default() };
        let records = run.scene.operator.audit(&request).await.unwrap();
        let done = records.iter().filter(|record| record.result.as_deref() == Some("done")).count();
        assert_eq!((records.len(), done), (run.acts, run.acts), "seed {seed}");
        run.scene.drop().await;
    }
}

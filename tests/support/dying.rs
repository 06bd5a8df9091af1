//! A shop process that is killed at named steps, and that delivers every message twice.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use document_outbox::deliver::{Answer, Deliver, Envelope, Outcome};
use mongodb::{
    Collection,
    bson::{Bson, Document, doc},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// The environment variable with the plan of the process.
const PLAN: &str = "OUTBOX_TEST_SHOP_PLAN";
/// What the process prints when it has reached its last step.
const REACHED: &str = "reached the step";

/// A moment at which a process can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A document was saved with its messages, and none of them was delivered.
    Saved,
    /// A message was delivered for the first time.
    Delivered,
    /// The message was delivered for the second time, and is still in its document.
    Repeated,
}

pub const STEPS: [Step; 3] = [Step::Saved, Step::Delivered, Step::Repeated];

/// What a process does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub database: String,
    pub over_rabbitmq: bool,
    pub approve_within_ms: u64,
    /// The step at which the process dies, and how many times it reaches that step.
    pub dies: Option<(Step, usize)>,
}

impl Plan {
    /// The plan of this process, if the process was started with one.
    pub fn of_this_process() -> Option<Self> {
        let plan = std::env::var(PLAN).ok()?;
        Some(serde_json::from_str(&plan).unwrap())
    }
}

/// A shop that runs in a separate process.
pub struct ShopProcess {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl ShopProcess {
    /// Starts this test binary with one test, which must run the plan.
    pub fn start(test: &str, plan: &Plan) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(PLAN, serde_json::to_string(plan).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    /// Waits until the process has reached the step at which it dies.
    pub async fn reached(&mut self) {
        while let Some(line) = self.output.next_line().await.unwrap() {
            if line.contains(REACHED) {
                return;
            }
        }
        panic!("the shop ended by itself");
    }

    /// Kills the process with SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Delivers each message twice. At the last step of the plan, the delivery hangs until the process is killed.
pub struct DyingDeliverer {
    pub deliverer: Arc<dyn Deliver>,
    pub dies: Option<(Step, usize)>,
    pub reached: AtomicUsize,
    /// The confirmations of this order wait until its fulfillment is cancelled.
    pub held: (String, Collection<Document>),
}

impl DyingDeliverer {
    async fn reach(&self, step: Step) {
        let Some((last, times)) = self.dies else { return };
        if step == last && self.reached.fetch_add(1, Ordering::SeqCst) + 1 >= times {
            println!("\n{REACHED} {step:?}");
            std::future::pending::<()>().await;
        }
    }

    async fn is_held(&self, envelope: &Envelope) -> bool {
        let (order, fulfillments) = &self.held;
        let of_order = envelope.payload.as_document().and_then(|payload| payload.get("order"));
        if envelope.message_type != "stock.confirmed" || of_order.and_then(Bson::as_str) != Some(order) {
            return false;
        }
        let cancelled = doc! { "_id": order, "state": "Cancelled" };
        !matches!(fulfillments.find_one(cancelled).await, Ok(Some(_)))
    }

    async fn deliver_twice(&self, envelope: &Envelope) -> Answer {
        if self.is_held(envelope).await {
            return Outcome::Unavailable("held by the test".into()).into();
        }
        let window = std::slice::from_ref(envelope);
        self.reach(Step::Saved).await;
        self.deliverer.deliver(window).await;
        self.reach(Step::Delivered).await;
        let answer = self.deliverer.deliver(window).await.pop().unwrap();
        self.reach(Step::Repeated).await;
        answer
    }
}

#[async_trait]
impl Deliver for DyingDeliverer {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        futures::future::join_all(window.iter().map(|envelope| self.deliver_twice(envelope))).await
    }

    fn via(&self, message_type: &str) -> Option<&str> {
        self.deliverer.via(message_type)
    }

    fn serves(&self, via: Option<&str>) -> bool {
        self.deliverer.serves(via)
    }

    fn is_available(&self) -> bool {
        self.deliverer.is_available()
    }

    async fn available(&self) {
        self.deliverer.available().await;
    }
}

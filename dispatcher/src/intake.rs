//! Takes commands from the queue, and hands each to a task.

use std::sync::Arc;

use document_outbox::amqp::Consumer;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use crate::{ability::Taking, worker::Worker};

/// Takes commands from the queue, only as many as this worker can process, until the worker is stopped.
pub(crate) async fn open_and_close(consumer: Arc<Consumer>, worker: Arc<Worker>) {
    let ability = worker.ability();
    loop {
        let (taking, next_try) = ability.taking();
        match taking {
            Taking::All => consumer.resume(worker.prefetch_now()),
            Taking::One => consumer.resume(1),
            Taking::Nothing => consumer.pause(),
        }

        tokio::select! {
            () = worker.stops().intake.cancelled() => return,
            () = ability.changed() => {}
            () = until(next_try) => {}
        }
    }
}

/// Waits until `time`; without a time, waits forever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Hands commands to tasks until the consumer ends or the intake is stopped. The prefetch bounds the
/// number of unsettled commands.
pub(crate) async fn take(consumer: Arc<Consumer>, worker: Arc<Worker>, tasks: TaskTracker) {
    let intake = worker.stops().intake.clone();
    while let Some(Some(delivery)) = intake.run_until_cancelled(consumer.next()).await {
        tasks.spawn(worker.clone().handle(delivery));
    }
}

//! Settles a message: acknowledges it, rejects it, or acknowledges it after the broker has confirmed a copy in another queue.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    amqp::{Publication, Published},
    receive::{
        copies,
        decide::{After, DeadCause, Delays, pause},
        delayed::Place,
        event::ReceiverEvent,
        settings::{DelayedOrder, UnknownTypes},
        taken::TakenMessage,
        worker::Worker,
    },
};

/// The outcome of publishing a copy.
enum Copied {
    Confirmed,
    /// The copy can never be published.
    Refused(String),
    /// The receiver stops, or the broker will deliver the message again.
    GivenUp,
}

impl Worker {
    pub(super) async fn acknowledge(&self, taken: TakenMessage, repeated: bool) {
        self.forget_place(&taken);
        let name = taken.ack().await;
        self.announce(if repeated { ReceiverEvent::Repeated(name) } else { ReceiverEvent::Applied(name) });
    }

    pub(super) async fn settle_unknown(&self, taken: TakenMessage) {
        match self.settings().unknown_types {
            UnknownTypes::DeadLetter => {
                let reason =
                    format!("no function receives messages of type `{}`", taken.message.message_type);
                self.dead_letter(taken, DeadCause::UnknownType, &reason).await;
            }
            UnknownTypes::Reject => {
                let name = taken.reject().await;
                self.announce(ReceiverEvent::Rejected(name));
            }
            UnknownTypes::Ignore => {
                let name = taken.ack().await;
                self.announce(ReceiverEvent::Ignored(name));
            }
        }
    }

    /// Publishes a copy to the delay queue, then acknowledges the message.
    pub(super) async fn delay(&self, taken: TakenMessage, error: String, delays: Delays) {
        let settings = self.settings();
        let count = taken.message.delays + u32::from(delays == Delays::OneMore);
        let copy =
            copies::delayed(&taken.delivery, &taken.message, &settings.delay_queue, count, settings.delay);
        self.keep_place(&taken, &copy);
        if delays == Delays::OneMore {
            self.failed(&error);
            if let Some(count) = self.repeats().count("delayed") {
                let message = &taken.name;
                tracing::warn!(?message, error, count, "a received message is put into the delay queue");
            }
        }

        match self.publish(&taken, &copy).await {
            Copied::Confirmed => {
                let message = taken.ack().await;
                self.announce(ReceiverEvent::Delayed { message, error });
            }
            Copied::Refused(reason) => {
                self.dead_letter(
                    taken,
                    DeadCause::Permanent,
                    &format!("{error}; the message cannot be delayed: {reason}"),
                )
                .await;
            }
            Copied::GivenUp => self.give_back(taken),
        }
    }

    /// Publishes a copy to the dead-letter queue, then acknowledges the message.
    pub(super) async fn dead_letter(&self, taken: TakenMessage, cause: DeadCause, error: &str) {
        self.forget_place(&taken);
        self.failed(error);
        let settings = self.settings();
        let queues = (settings.queue.as_str(), settings.dead_letter_queue.as_str());
        let copy = copies::dead(&taken.delivery, &taken.message, queues, cause, error);

        match self.publish(&taken, &copy).await {
            Copied::Confirmed => {
                if let Some(count) = self.repeats().count("dead") {
                    let (message, cause) = (&taken.name, cause.as_str());
                    tracing::warn!(
                        ?message,
                        cause,
                        error,
                        count,
                        "a received message is put into the dead-letter queue"
                    );
                }
                let message = taken.ack().await;
                self.announce(ReceiverEvent::Died { message, cause, error: error.to_owned() });
            }
            Copied::Refused(reason) => {
                // The broker itself dead-letters a rejected message, without the limits that apply to the published
                // copy.
                let message = &taken.name;
                tracing::warn!(
                    ?message,
                    error,
                    reason,
                    "a received message cannot be copied, so it is rejected"
                );
                let name = taken.reject().await;
                self.announce(ReceiverEvent::Rejected(name));
            }
            Copied::GivenUp => self.give_back(taken),
        }
    }

    /// Leaves a message unsettled, so that the broker delivers it again.
    pub(super) fn give_back(&self, taken: TakenMessage) {
        let name = taken.name.clone();
        drop(taken);
        self.announce(ReceiverEvent::Returned(name));
    }

    /// Publishes a copy until the broker confirms it. Until then, no other messages are taken.
    async fn publish(&self, taken: &TakenMessage, copy: &Publication) -> Copied {
        let mut outage = None;
        let mut tries = 0;
        loop {
            let reason = match self.publish_once(copy).await {
                Some(Published::Confirmed) => return Copied::Confirmed,
                Some(Published::Refused { reason }) => return Copied::Refused(reason),
                Some(Published::Unroutable { .. }) => format!("there is no queue `{}`", copy.routing_key),
                Some(Published::Nacked) => {
                    format!("the queue `{}` is full, or it cannot be written to", copy.routing_key)
                }
                Some(Published::Rejected { reason } | Published::Unavailable { reason, .. }) => reason,
                None => "the publisher gave no answer".to_owned(),
            };

            let reason = format!("the copy of a message could not be published: {reason}");
            self.unavailable_for(taken, &reason);
            outage.get_or_insert_with(|| self.outage().enter(&reason));
            tries += 1;
            if self.wait(taken, pause(tries, self.settings())).await == After::GiveUp {
                return Copied::GivenUp;
            }
        }
    }

    /// Waits for the pause, or until the receiver stops.
    pub(super) async fn wait(&self, taken: &TakenMessage, pause: Duration) -> After {
        let stopped = self.stop().run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
        if stopped || taken.delivery.is_stale() { After::GiveUp } else { After::Continue }
    }

    pub(super) async fn retry_after(&self, taken: &TakenMessage, pause: Duration, error: String) -> After {
        self.failed(&error);
        if let Some(count) = self.repeats().count("retry") {
            let message = &taken.name;
            tracing::warn!(
                ?message,
                error,
                count,
                "a received message could not be handled; it is tried again"
            );
        }
        let _held = self.hold_key(taken);
        self.announce(ReceiverEvent::Retried { message: taken.name.clone(), error });
        self.wait(taken, pause).await
    }

    pub(super) fn unavailable_for(&self, taken: &TakenMessage, error: &str) {
        self.failed(error);
        if let Some(count) = self.repeats().count("unavailable") {
            tracing::warn!(
                error,
                count,
                "no messages are received, because something that they need is unavailable"
            );
        }
        let message = taken.name.clone();
        self.announce(ReceiverEvent::Unavailable { message, error: error.to_owned() });
    }

    /// Remembers the place of a message in the order of its key. If the message gets no place, counts that the order is
    /// given up.
    fn keep_place(&self, taken: &TakenMessage, copy: &Publication) {
        let Some(key) = &taken.key else { return };
        let place = match self.settings().delayed_order {
            DelayedOrder::GiveUp => Place::GivenUp,
            DelayedOrder::Follow => {
                // The copy of a message without an id gets a new id, which the message has when it returns.
                let id = taken.id().unwrap_or_else(|| copy.message_id.clone());
                self.delayed().lock().delay(key, &id, Instant::now())
            }
        };
        if place == Place::GivenUp {
            self.metrics().order_given_up();
        }
    }

    fn forget_place(&self, taken: &TakenMessage) {
        if let (Some(key), Some(id)) = (&taken.key, taken.id()) {
            self.delayed().lock().settled(key, &id);
        }
    }
}

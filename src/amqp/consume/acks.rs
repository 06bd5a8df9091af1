//! Acknowledges the deliveries of one connection: those that are done at the same time with as few frames as possible.
//!
//! AMQP acknowledges one delivery, or every delivery up to one. The second form is used only up to the oldest delivery that
//! is not settled, so it never includes one that somebody still works on. The others are acknowledged one by one.

use std::{collections::BTreeSet, sync::Arc};

use futures::future::join_all;
use lapin::{Acker, options::BasicAckOptions, types::DeliveryTag};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// The tags of the deliveries that were passed on and are not settled. The broker numbers deliveries in their order.
#[derive(Debug, Default)]
pub(super) struct OpenTags {
    tags: Mutex<BTreeSet<DeliveryTag>>,
}

impl OpenTags {
    pub(super) fn add(self: &Arc<Self>, tag: DeliveryTag) -> OpenTag {
        self.tags.lock().insert(tag);
        OpenTag { tag, unsettled: self.clone() }
    }

    pub(super) fn count(&self) -> usize {
        self.tags.lock().len()
    }

    /// How many of these deliveries, in the order of their tags, come before every other that is not settled.
    fn leading(&self, done: &[AckRequest]) -> usize {
        let tags = self.tags.lock();
        tags.iter().zip(done).take_while(|(tag, request)| **tag == request.tag.tag).count()
    }
}

/// A delivery that is not settled, until this is dropped: after the broker was sent the answer.
#[derive(Debug)]
pub(super) struct OpenTag {
    tag: DeliveryTag,
    unsettled: Arc<OpenTags>,
}

impl Drop for OpenTag {
    fn drop(&mut self) {
        self.unsettled.tags.lock().remove(&self.tag);
    }
}

/// A delivery to acknowledge, and its waiting caller.
pub(super) struct AckRequest {
    pub(super) acker: Acker,
    pub(super) tag: OpenTag,
    /// Whether the broker was sent the acknowledgement.
    pub(super) told: oneshot::Sender<bool>,
}

impl AckRequest {
    fn answer(self, told: bool) {
        // Its caller may have gone.
        let _ = self.told.send(told);
    }
}

/// Acknowledges what arrives, until no delivery is left that could.
pub(super) async fn acknowledge(mut requests: mpsc::UnboundedReceiver<AckRequest>, unsettled: Arc<OpenTags>) {
    while let Some(first) = requests.recv().await {
        // Tasks that were woken together are about to ask, too.
        tokio::task::yield_now().await;
        let mut done = vec![first];
        while let Ok(request) = requests.try_recv() {
            done.push(request);
        }
        done.sort_unstable_by_key(|request| request.tag.tag);

        let others = done.split_off(unsettled.leading(&done));
        if let Some(last) = done.last() {
            let told = ack(&last.acker, true).await;
            for request in done {
                request.answer(told);
            }
        }

        let told = join_all(others.iter().map(|request| ack(&request.acker, false))).await;
        for (request, told) in others.into_iter().zip(told) {
            request.answer(told);
        }
    }
}

/// False if the broker was not sent it.
async fn ack(acker: &Acker, multiple: bool) -> bool {
    acker.ack(BasicAckOptions { multiple }).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(tags: impl IntoIterator<Item = OpenTag>) -> Vec<AckRequest> {
        let request = |tag: OpenTag| {
            let mock = lapin::message::Delivery::mock(tag.tag, "".into(), "".into(), false, Vec::new());
            let acker = mock.acker;
            AckRequest { acker, tag, told: oneshot::channel().0 }
        };
        tags.into_iter().map(request).collect()
    }

    #[test]
    fn no_frame_acknowledges_past_an_unsettled_delivery() {
        let unsettled = Arc::new(OpenTags::default());
        let [one, two, three, four] = [1, 2, 3, 4].map(|tag| unsettled.add(tag));

        let late = done([two, four]);
        assert_eq!(unsettled.leading(&late), 0, "the first is held");
        drop(one);
        assert_eq!(unsettled.leading(&late), 1, "the third is held");
        drop(three);
        assert_eq!(unsettled.leading(&late), 2);
        drop(late);
        assert_eq!(unsettled.count(), 0);
    }
}

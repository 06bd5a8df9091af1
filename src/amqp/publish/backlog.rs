//! Queues the messages that wait to be published. Takes the requests of many callers, forms windows from them, and
//! returns each answer to its caller.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::amqp::publish::publication::{Publication, Published};

/// The answer for a message that was dropped without an answer.
const GONE: &str = "the publisher has ended";

/// One caller's messages on their way to the publisher.
#[derive(Debug)]
pub(super) struct PublishRequest(Vec<Item>);

/// The caller's end of a request. Dropping this value cancels all messages that have no answer yet.
#[derive(Debug)]
pub(super) struct Answers(Arc<Ticket>);

/// One message in flight, with the place for its answer. If this value is dropped without an answer, the caller gets
/// the answer that the publisher has ended.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) publication: Publication,
    ticket: Arc<Ticket>,
    slot: usize,
}

#[derive(Debug)]
struct Ticket {
    state: Mutex<TicketState>,
    complete: Notify,
    abandoned: AtomicBool,
}

#[derive(Debug)]
struct TicketState {
    answers: Vec<Option<Published>>,
    open: usize,
}

/// A first-in, first-out queue of messages.
#[derive(Default)]
pub(super) struct Backlog {
    items: VecDeque<Item>,
}

impl PublishRequest {
    pub(super) fn new(publications: Vec<Publication>) -> (Self, Answers) {
        let ticket = Arc::new(Ticket {
            state: Mutex::new(TicketState {
                answers: vec![None; publications.len()],
                open: publications.len(),
            }),
            complete: Notify::new(),
            abandoned: AtomicBool::new(false),
        });
        let mut items = Vec::with_capacity(publications.len());

        for (slot, publication) in publications.into_iter().enumerate() {
            items.push(Item { publication, ticket: ticket.clone(), slot });
        }
        (Self(items), Answers(ticket))
    }

    /// Answers all messages of the request as unavailable and certainly not sent.
    pub(super) fn decline(self, reason: &str) {
        for item in self.0 {
            item.decline(reason);
        }
    }
}

impl Answers {
    /// Waits until every message has an answer.
    pub(super) async fn complete(&self) {
        loop {
            let complete = self.0.complete.notified();
            if self.0.lock().open == 0 {
                return;
            }
            complete.await;
        }
    }

    /// Returns the answers so far, in the order of the messages.
    pub(super) fn take(self) -> Vec<Option<Published>> {
        std::mem::take(&mut self.0.lock().answers)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Ticket {
    fn lock(&self) -> MutexGuard<'_, TicketState> {
        self.state.lock()
    }

    /// Records an answer. Only the first answer to a message counts.
    fn answer(&self, slot: usize, answer: impl FnOnce() -> Published) {
        let mut state = self.lock();
        let Some(place @ None) = state.answers.get_mut(slot) else {
            return; // already answered, or the caller has already taken the answers
        };
        *place = Some(answer());
        state.open -= 1;

        if state.open == 0 {
            self.complete.notify_one();
        }
    }
}

impl Item {
    /// Sends the caller the answer for this message.
    pub(super) fn settle(self, answer: Published) {
        self.ticket.answer(self.slot, || answer);
    }

    /// Answers that the message was certainly not sent.
    pub(super) fn decline(self, reason: &str) {
        self.settle(Published::Unavailable { reason: reason.to_owned(), maybe_sent: false });
    }

    /// Whether the caller gave up. Another process may have the message by now, so this process must no longer send
    /// it.
    pub(super) fn is_abandoned(&self) -> bool {
        self.ticket.abandoned.load(Ordering::Relaxed)
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        let unanswered = || Published::Unavailable { reason: GONE.to_owned(), maybe_sent: true };
        self.ticket.answer(self.slot, unanswered);
    }
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn add(&mut self, request: PublishRequest) {
        self.items.extend(request.0);
    }

    /// Takes the next window of messages, in order. A window ends when it has this many messages or bytes, or before a
    /// message whose id the window already contains. Messages whose callers gave up are left out. The window is empty
    /// only if no message waits.
    pub(super) fn window(&mut self, messages: usize, bytes: usize) -> Vec<Item> {
        let (mut window, mut ids, mut weight) = (Vec::new(), HashSet::new(), 0);

        while let Some(item) = self.items.front() {
            if item.is_abandoned() {
                self.items.pop_front();
                continue;
            }
            weight += item.publication.weight();
            let full = window.len() >= messages || weight > bytes;
            if !window.is_empty() && (full || ids.contains(&item.publication.message_id)) {
                break;
            }
            ids.insert(item.publication.message_id.clone());
            window.extend(self.items.pop_front());
        }
        window
    }

    /// Answers all waiting messages as unavailable and certainly not sent.
    pub(super) fn decline(&mut self, reason: &str) {
        for item in std::mem::take(&mut self.items) {
            item.decline(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ids: &[&str]) -> (PublishRequest, Answers) {
        let publication = |id: &&str| Publication { message_id: (*id).into(), ..Publication::default() };
        PublishRequest::new(ids.iter().map(publication).collect())
    }

    fn ids(window: &[Item]) -> Vec<&str> {
        window.iter().map(|item| item.publication.message_id.as_str()).collect()
    }

    #[tokio::test]
    async fn callers_sharing_a_window_get_their_own_answers() {
        let mut backlog = Backlog::default();
        let (first, first_answers) = request(&["1", "2"]);
        let (second, second_answers) = request(&["3"]);
        backlog.add(first);
        backlog.add(second);
        let mut window = backlog.window(10, usize::MAX);
        assert_eq!(ids(&window), ["1", "2", "3"]);
        window.pop().unwrap().settle(Published::Confirmed);
        second_answers.complete().await;
        assert_eq!(second_answers.take(), [Some(Published::Confirmed)]);
        window.pop().unwrap().settle(Published::Nacked);
        window.pop().unwrap().settle(Published::Confirmed);
        first_answers.complete().await;
        assert_eq!(first_answers.take(), [Some(Published::Confirmed), Some(Published::Nacked)]);
    }

    #[test]
    fn a_window_ends_before_a_repeated_message_id() {
        let mut backlog = Backlog::default();
        let (request, _answers) = request(&["1", "2", "1", "3"]);
        backlog.add(request);
        assert_eq!(ids(&backlog.window(10, usize::MAX)), ["1", "2"]);
        assert_eq!(ids(&backlog.window(10, usize::MAX)), ["1", "3"]);
    }

    #[test]
    fn windows_have_limits_but_take_one_large_message() {
        let mut backlog = Backlog::default();
        let (request, _answers) = request(&["1", "2", "3", "4"]);
        backlog.add(request);
        assert_eq!(ids(&backlog.window(2, usize::MAX)), ["1", "2"]);
        assert_eq!(ids(&backlog.window(2, 1)), ["3"]);
        assert_eq!(backlog.len(), 1);
    }

    #[test]
    fn a_backlog_counts_as_unsent_on_connection_loss() {
        let mut backlog = Backlog::default();
        let (request, answers) = request(&["1", "2"]);
        backlog.add(request);
        backlog.window(1, usize::MAX).pop().unwrap().settle(Published::Confirmed);
        backlog.decline("gone");
        let declined = Published::Unavailable { reason: "gone".into(), maybe_sent: false };
        assert_eq!(answers.take(), [Some(Published::Confirmed), Some(declined)]);
    }

    #[test]
    fn messages_of_callers_that_gave_up_stay_unpublished() {
        let mut backlog = Backlog::default();
        let (gone, answers) = request(&["1", "2"]);
        let (waiting, _answers) = request(&["3"]);
        backlog.add(gone);
        backlog.add(waiting);
        drop(answers);
        assert_eq!(ids(&backlog.window(10, usize::MAX)), ["3"]);
        assert!(backlog.is_empty());
    }

    #[tokio::test]
    async fn a_dropped_message_leaves_no_caller_waiting() {
        let (request, answers) = request(&["1"]);
        drop(request);
        answers.complete().await;
        assert!(matches!(answers.take()[..], [Some(Published::Unavailable { maybe_sent: true, .. })]));
    }
}

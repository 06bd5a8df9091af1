//! What waits to be published: requests of many callers go in, windows come out, answers find their way back.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::sync::oneshot;

use super::{Publication, Published};

/// One caller's messages and where its answer goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) publications: Vec<Publication>,
    pub(super) reply: oneshot::Sender<Vec<Published>>,
}

/// One message on its way, and the place of its answer.
pub(super) struct Item {
    pub(super) publication: Publication,
    ticket: u64,
    slot: usize,
}

struct Ticket {
    answers: Vec<Option<Published>>,
    open: usize,
    reply: oneshot::Sender<Vec<Published>>,
}

/// First in, first out.
#[derive(Default)]
pub(super) struct Backlog {
    items: VecDeque<Item>,
    tickets: HashMap<u64, Ticket>,
    last: u64,
}

impl Request {
    /// Answers all of it as unavailable and certainly not sent.
    pub(super) fn decline(self, reason: &str) {
        let answer = Published::Unavailable { reason: reason.to_owned(), maybe_sent: false };
        // A caller that is gone misses nothing.
        let _ = self.reply.send(vec![answer; self.publications.len()]);
    }
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn add(&mut self, request: Request) {
        let Request { publications, reply } = request;
        if reply.is_closed() {
            return; // its caller gave up before anything of it was sent
        }
        self.last += 1;
        let (ticket, open) = (self.last, publications.len());
        self.tickets.insert(ticket, Ticket { answers: vec![None; open], open, reply });
        let items = publications.into_iter().enumerate();
        self.items.extend(items.map(|(slot, publication)| Item { publication, ticket, slot }));
    }

    /// The next window, in order: ends at so many messages or bytes, or before a message id it already has.
    /// Holds at least one message unless nothing waits.
    pub(super) fn window(&mut self, messages: usize, bytes: usize) -> Vec<Item> {
        let (mut window, mut ids, mut weight) = (Vec::new(), HashSet::new(), 0);
        while let Some(item) = self.items.front() {
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

    /// Puts an answer in its place; the caller gets all of its answers with the last.
    pub(super) fn settle(&mut self, item: &Item, answer: Published) {
        let Some(ticket) = self.tickets.get_mut(&item.ticket) else {
            return;
        };
        if ticket.answers[item.slot].replace(answer).is_none() {
            ticket.open -= 1;
        }
        if ticket.open == 0
            && let Some(ticket) = self.tickets.remove(&item.ticket)
        {
            let _ = ticket.reply.send(ticket.answers.into_iter().flatten().collect());
        }
    }

    /// Answers everything that still waits as unavailable and certainly not sent.
    pub(super) fn decline(&mut self, reason: &str) {
        for item in std::mem::take(&mut self.items) {
            self.settle(&item, Published::Unavailable { reason: reason.to_owned(), maybe_sent: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ids: &[&str]) -> (Request, oneshot::Receiver<Vec<Published>>) {
        let publication = |id: &&str| Publication { message_id: (*id).into(), ..Publication::default() };
        let (reply, answer) = oneshot::channel();
        (Request { publications: ids.iter().map(publication).collect(), reply }, answer)
    }

    fn ids(window: &[Item]) -> Vec<&str> {
        window.iter().map(|item| item.publication.message_id.as_str()).collect()
    }

    #[test]
    fn callers_share_a_window_and_each_gets_its_own_answers_in_order() {
        let mut backlog = Backlog::default();
        let (first, mut first_answer) = request(&["1", "2"]);
        let (second, mut second_answer) = request(&["3"]);
        backlog.add(first);
        backlog.add(second);
        let window = backlog.window(10, usize::MAX);
        assert_eq!(ids(&window), ["1", "2", "3"]);
        backlog.settle(&window[2], Published::Confirmed);
        backlog.settle(&window[1], Published::Nacked);
        assert_eq!(second_answer.try_recv().unwrap(), [Published::Confirmed]);
        assert!(first_answer.try_recv().is_err());
        backlog.settle(&window[0], Published::Confirmed);
        assert_eq!(first_answer.try_recv().unwrap(), [Published::Confirmed, Published::Nacked]);
    }

    #[test]
    fn a_window_ends_before_a_message_id_it_already_has() {
        let mut backlog = Backlog::default();
        let (request, _answer) = request(&["1", "2", "1", "3"]);
        backlog.add(request);
        assert_eq!(ids(&backlog.window(10, usize::MAX)), ["1", "2"]);
        assert_eq!(ids(&backlog.window(10, usize::MAX)), ["1", "3"]);
    }

    #[test]
    fn a_window_ends_at_its_count_and_its_bytes_but_takes_one_message_of_any_size() {
        let mut backlog = Backlog::default();
        let (request, _answer) = request(&["1", "2", "3", "4"]);
        backlog.add(request);
        assert_eq!(ids(&backlog.window(2, usize::MAX)), ["1", "2"]);
        assert_eq!(ids(&backlog.window(2, 1)), ["3"]);
        assert_eq!(backlog.len(), 1);
    }

    #[test]
    fn what_waits_when_the_connection_ends_was_certainly_not_sent() {
        let mut backlog = Backlog::default();
        let (request, mut answer) = request(&["1", "2"]);
        backlog.add(request);
        let window = backlog.window(1, usize::MAX);
        backlog.settle(&window[0], Published::Confirmed);
        backlog.decline("gone");
        let declined = Published::Unavailable { reason: "gone".into(), maybe_sent: false };
        assert_eq!(answer.try_recv().unwrap(), [Published::Confirmed, declined]);
    }

    #[test]
    fn a_caller_that_gave_up_is_not_published_for() {
        let mut backlog = Backlog::default();
        let (request, answer) = request(&["1"]);
        drop(answer);
        backlog.add(request);
        assert!(backlog.is_empty());
    }
}

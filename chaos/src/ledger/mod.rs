//! Compares the messages that should have arrived with the messages that did arrive. The ledger observes the system only from
//! outside: the applications print their saves on standard output, the harness's own consumer receives the messages, and at the
//! end of a run the field `sent` of each document, which is not part of the outbox, lists the messages that were committed.

mod evidence;
mod history;
mod log;
mod receiver;
mod truth;
mod verdict;
mod windows;

pub(crate) use self::{
    evidence::Evidence,
    history::History,
    log::Ledger,
    receiver::Receiver,
    truth::{Truth, filled_outboxes, replay_dead},
    verdict::{Verdict, judge},
    windows::Window,
};

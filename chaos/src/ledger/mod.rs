//! Compares the messages that should have arrived with those that did. All of this is observed from outside the system: the
//! applications print their saves on standard output, the harness's own consumer receives the messages, and at the end of a run a
//! field of the documents other than the outbox lists the messages that were committed.

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

//! The messages that should have arrived and those that did, from outside the system: from the lines that the applications print on their standard output,
//! from a consumer of the harness's own, and in the end from a field of the documents that is not the outbox.

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

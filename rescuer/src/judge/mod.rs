//! Decides whether a document needs a command now.

pub(crate) mod inspect;
pub(crate) mod unreadable;
pub(crate) mod verdict;

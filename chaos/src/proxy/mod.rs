//! The network between each process and its servers, which fails on demand.
//!
//! Every process has links of its own, so a fault can hit one process and no other. A link understands where frames begin and
//! end, so it can cut in the middle of one, kill its process at a named point of a conversation, and note what was published.

mod amqp;
mod frames;
mod link;
mod points;
mod traffic;

pub(crate) use self::{
    link::{Link, Route},
    points::{Moment, Point},
    traffic::{Answer, Publish, Traffic},
};

//! The network between each process and its servers, which fails on demand.
//!
//! Every process has its own links, so a fault can hit a single process. A link knows where frames begin and end. A link can
//! therefore cut a connection in the middle of a frame, kill the process that uses it at a named point, and note each published
//! message.

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

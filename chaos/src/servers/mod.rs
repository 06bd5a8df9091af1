//! The servers: a MongoDB set of three, and a RabbitMQ cluster of three of its own.

mod cluster;
mod erlang;
mod set;

pub(crate) use self::{cluster::Cluster, set::Set};

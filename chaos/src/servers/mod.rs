//! The servers of a storm: a MongoDB set of three members, and a RabbitMQ cluster of three nodes.

mod cluster;
mod erlang;
mod set;

pub(crate) use self::{cluster::Cluster, set::Set};

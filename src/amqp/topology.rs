//! The exchanges and queues that must exist before publishing or consuming.

use lapin::{
    Channel,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use crate::amqp::trouble::{Trouble, broker_said, code_of, short};

/// Whether the topology is declared, verified, or left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum TopologyMode {
    /// Declare missing exchanges, queues and bindings. Exchanges and queues that already exist must have the same
    /// arguments.
    #[default]
    Declare,
    /// Declare nothing, but don't become ready while an exchange or a queue is missing. Bindings and arguments are not
    /// checked, because they can't be read over AMQP.
    Verify,
    /// Neither declare nor verify.
    Off,
}

/// The way in which an exchange routes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Routes by patterns of the routing key.
    Topic,
    /// Routes by the exact routing key.
    Direct,
    /// Routes to every bound queue.
    Fanout,
}

/// An exchange. It is always durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeSpec {
    /// The name.
    pub name: String,
    /// The way in which the exchange routes messages.
    pub kind: ExchangeKind,
}

/// A queue. It is always durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueSpec {
    /// The name.
    pub name: String,
    /// Whether the queue is a quorum queue, which is replicated by Raft. Otherwise it is a classic queue.
    pub quorum: bool,
    /// The number of deliveries after which the broker dead-letters or drops a message. For quorum queues only.
    pub delivery_limit: Option<u32>,
    /// The bindings, as pairs of an exchange and a routing key.
    pub bind: Vec<(String, String)>,
    /// The queue that gets the messages that this queue drops because they expired, were rejected, or were delivered
    /// too many times. A quorum queue passes on each of these messages at least once.
    pub dead_letter_to: Option<String>,
    /// Whether the broker delivers to only one consumer at a time. Once that consumer is gone, the broker delivers to
    /// the next one.
    pub single_active_consumer: bool,
}

/// A set of exchanges, queues and bindings. They are declared in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The exchanges.
    pub exchanges: Vec<ExchangeSpec>,
    /// The queues with their bindings.
    pub queues: Vec<QueueSpec>,
    /// Whether the exchanges and queues are declared, verified, or left alone.
    pub mode: TopologyMode,
}

impl Topology {
    /// Whether the topology declares this queue for one consumer at a time.
    pub(super) fn has_one_active_consumer(&self, queue: &str) -> bool {
        self.queues.iter().any(|spec| spec.name == queue && spec.single_active_consumer)
    }

    pub(super) fn has_exchange(&self, name: &str) -> bool {
        self.exchanges.iter().any(|exchange| exchange.name == name)
    }

    /// Whether the topology binds a queue that receives the messages published to this exchange with this routing key.
    pub(super) fn routes(&self, exchange: &str, routing_key: &str) -> bool {
        let Some(spec) = self.exchanges.iter().find(|spec| spec.name == exchange) else {
            return false;
        };
        let mut bindings = self.queues.iter().flat_map(|queue| &queue.bind);
        bindings.any(|(bound, pattern)| bound == exchange && spec.kind.routes(pattern, routing_key))
    }

    /// Declares or verifies everything on a separate channel, because the broker closes a channel on which
    /// it refuses a request.
    pub(super) async fn apply(&self, channel: &Channel) -> Result<(), Trouble> {
        if self.mode == TopologyMode::Off {
            return Ok(());
        }
        for exchange in &self.exchanges {
            self.exchange(channel, exchange).await?;
        }
        for queue in &self.queues {
            self.queue(channel, queue).await?;
        }
        Ok(())
    }

    async fn exchange(&self, channel: &Channel, spec: &ExchangeSpec) -> Result<(), Trouble> {
        let options = ExchangeDeclareOptions {
            passive: self.mode == TopologyMode::Verify,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(short(&spec.name)?, spec.kind.into(), options, FieldTable::default())
            .await
            .map_err(|error| self.explain(&error, &format!("exchange {:?}", spec.name)))
    }

    async fn queue(&self, channel: &Channel, spec: &QueueSpec) -> Result<(), Trouble> {
        let what = format!("queue {:?}", spec.name);
        let options = QueueDeclareOptions {
            passive: self.mode == TopologyMode::Verify,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(short(&spec.name)?, options, spec.arguments())
            .await
            .map_err(|error| self.explain(&error, &what))?;
        if self.mode == TopologyMode::Verify {
            return Ok(());
        }
        for (exchange, key) in &spec.bind {
            let names = (short(&spec.name)?, short(exchange)?, short(key)?);
            channel
                .queue_bind(names.0, names.1, names.2, QueueBindOptions::default(), FieldTable::default())
                .await
                .map_err(|error| self.explain(&error, &format!("binding of {what} to {exchange:?}")))?;
        }
        Ok(())
    }

    fn explain(&self, error: &lapin::Error, what: &str) -> Trouble {
        let said = broker_said(error);
        let advice = match (code_of(error), self.mode) {
            (Some(406), _) => {
                "it exists with other arguments: delete it, choose another name, or set the topology to `verify` or `off` to use it unchanged"
            }
            (Some(404), TopologyMode::Verify) => {
                "it does not exist: create it, or set the topology to `declare`"
            }
            (Some(404), _) => {
                "something that it depends on does not exist: add the missing part to the topology, or create it"
            }
            (Some(403), _) => {
                "the user lacks permission: grant the user configure, write and read on this name, or set the topology to `verify` or `off`"
            }
            (Some(405), _) => "another connection uses it exclusively: choose another name",
            _ => return Trouble::Unreachable(format!("the {what} could not be declared: {said}")),
        };
        Trouble::Misconfigured(format!("the {what} was refused, {advice} ({said})"))
    }
}

impl QueueSpec {
    fn arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        if self.quorum {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            if let Some(limit) = self.delivery_limit {
                arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(i64::from(limit)));
            }
        }
        if let Some(queue) = &self.dead_letter_to {
            let mut text = |name: &str, value: &str| {
                arguments.insert(name.into(), AMQPValue::LongString(value.into()));
            };
            // The empty name is the default exchange, whose bindings can't be removed.
            text("x-dead-letter-exchange", "");
            text("x-dead-letter-routing-key", queue);
            if self.quorum {
                // With the default strategy, the broker drops messages that the dead-letter queue does not take.
                text("x-dead-letter-strategy", "at-least-once");
                text("x-overflow", "reject-publish");
            }
        }
        if self.single_active_consumer {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        arguments
    }
}

impl ExchangeKind {
    fn routes(self, pattern: &str, routing_key: &str) -> bool {
        match self {
            Self::Fanout => true,
            Self::Direct => pattern == routing_key,
            Self::Topic => {
                let (pattern, key): (Vec<_>, Vec<_>) =
                    (pattern.split('.').collect(), routing_key.split('.').collect());
                topic_matches(&pattern, &key)
            }
        }
    }
}

/// Matches a topic pattern, in which `*` matches one word and `#` any number of words.
fn topic_matches(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], []) => true,
        (["#", rest @ ..], _) => (0..=key.len()).any(|words| topic_matches(rest, &key[words..])),
        ([word, pattern @ ..], [first, key @ ..]) if *word == "*" || word == first => {
            topic_matches(pattern, key)
        }
        _ => false,
    }
}

impl From<ExchangeKind> for lapin::ExchangeKind {
    fn from(kind: ExchangeKind) -> Self {
        match kind {
            ExchangeKind::Topic => Self::Topic,
            ExchangeKind::Direct => Self::Direct,
            ExchangeKind::Fanout => Self::Fanout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_binding_matches_as_rabbitmq_does() {
        for (pattern, key, matches) in [
            ("order.paid", "order.paid", true),
            ("order.*", "order.paid", true),
            ("order.*", "order", false),
            ("#", "", true),
            ("#", "order.paid.late", true),
            ("order.#", "order", true),
            ("*.paid.#", "order.paid.late.again", true),
            ("#.late", "order.paid", false),
        ] {
            assert_eq!(ExchangeKind::Topic.routes(pattern, key), matches, "{pattern} {key}");
        }
        assert!(!ExchangeKind::Direct.routes("#", "order"));
    }
}

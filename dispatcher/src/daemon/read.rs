//! Converts the process's settings to the settings of the dispatcher and of the connections.

use document_outbox::{
    RetryPolicy, amqp::TopologyMode, deliver::RabbitMqSettings, dispatch::ProcessorSettings,
};
use outbox_service::{Connections, Reader, host_name};

use crate::settings::DispatcherSettings;

/// The name of the connections. The name of the processor consists of this name, the name of the host and the
/// id of the process.
pub(super) const NAME: &str = "outbox-dispatcher";
/// The worker's part of the grace period; the rest is for closing the connections.
const GRACE_OF_THE_WORKER: f64 = 0.9;

/// The settings as they were read, before any connection is made.
pub(super) struct Settings {
    pub(super) connections: Connections,
    /// `None` only if there is also a problem that keeps the worker from starting.
    pub(super) rabbitmq: Option<RabbitMqSettings>,
    pub(super) processor: ProcessorSettings,
    pub(super) dispatcher: DispatcherSettings,
}

/// Reads every key, and reports values that don't fit together.
pub(super) fn read(read: &mut Reader<'_>) -> Settings {
    let topology: TopologyMode = read.choice("topology");
    let connections = Connections::read(read, NAME);
    let rabbitmq = connections.rabbitmq.clone().map(|amqp| RabbitMqSettings {
        exchange: read.string("messages_exchange"),
        topology,
        payload: read.choice("payload_format"),
        attribute_prefix: read.choice("attribute_prefix"),
        unroutable_ok: read.strings("unroutable_ok").into_iter().collect(),
        ..RabbitMqSettings::over(amqp)
    });

    let processor = read_processor(read);

    let dispatcher = read_dispatcher(read, topology);
    for problem in dispatcher.validate().err().unwrap_or_default().0 {
        read.problem(&problem.settings, problem.sentence);
    }

    Settings { connections, rabbitmq, processor, dispatcher }
}

fn read_processor(read: &mut Reader<'_>) -> ProcessorSettings {
    let mut retry = RetryPolicy::default();
    retry.max_attempts = read.integer("max_attempts");
    retry.backoff_min = read.duration("backoff_min");
    retry.backoff_max = read.duration("backoff_max");
    if retry.backoff_min > retry.backoff_max {
        read.problem(&["backoff_min", "backoff_max"], "must not be longer than backoff_max");
    }

    let mut settings = ProcessorSettings::default();
    settings.name = format!("{NAME}@{}:{}", host_name(), std::process::id());
    settings.claim_lease = read.duration("claim_lease");
    settings.retry = retry;
    settings.state_database = read.string("state_database");
    settings.max_repeats = read.integer("max_repeats");
    settings.memory_bytes = read.integer::<usize>("memory_mib") << 20;
    settings
}

fn read_dispatcher(read: &mut Reader<'_>, topology: TopologyMode) -> DispatcherSettings {
    let mut settings = DispatcherSettings::new(read.namespaces("watch"));
    settings.unordered = read.namespaces("unordered");
    settings.dead_blocks = read.namespaces("dead_blocks");
    settings.commands_exchange = read.string("commands_exchange");
    settings.commands_queue = read.string("commands_queue");
    settings.topology = topology;
    settings.concurrency = read.integer("concurrency");
    settings.rate = read.string("rate").parse().ok();
    settings.prefetch = read.integer("prefetch");
    settings.hold_within = read.duration("hold_within");
    settings.grace = read.duration("shutdown_grace").mul_f64(GRACE_OF_THE_WORKER);
    settings
}

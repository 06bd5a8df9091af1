//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// The width of tables, unless the terminal has another.
const WIDTH: usize = 80;
const ABOUT: &str =
    "Finds messages in the outboxes of MongoDB documents, explains them, and checks the servers.";
const AFTER: &str = "\
The servers are named by OUTBOX_MONGODB_URI, OUTBOX_RABBITMQ_URI (optional) and OUTBOX_WATCH in the environment, or by a \
profile. They are never arguments, because arguments are visible to other users.

Exit codes: 0 done, 1 error or problem found, 2 usage, 3 nothing matched, 4 partly done, 5 refused.";

/// The arguments.
#[derive(Debug, Parser)]
#[command(name = "outboxctl", version, about = ABOUT, after_help = AFTER)]
pub struct Args {
    /// What applies to every command.
    #[command(flatten)]
    pub general: General,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The arguments of every command.
#[derive(Debug, Clone, ClapArgs)]
pub struct General {
    /// Read the settings from NAME.toml in the directory of profiles. Then the environment's OUTBOX_ variables are
    /// ignored
    #[arg(long, global = true, value_name = "NAME", env = "OUTBOXCTL_PROFILE")]
    pub profile: Option<String>,
    /// The directory of profiles [default: ~/.config/outboxctl]
    #[arg(long, global = true, value_name = "DIRECTORY", env = "OUTBOXCTL_PROFILES")]
    pub profiles: Option<PathBuf>,
    /// The collections with outboxes, in place of the setting `watch`
    #[arg(long, global = true, value_name = "PATTERNS")]
    pub watch: Option<String>,
    /// The form of the result
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// The width of tables
    #[arg(
        long,
        global = true,
        value_name = "COLUMNS",
        default_value_t = WIDTH,
        env = "COLUMNS",
        value_parser = width
    )]
    pub width: usize,
    /// Read from a secondary, which can be behind the primary
    #[arg(long, global = true)]
    pub secondary: bool,
    /// The time limit of each query, for example 2m
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub max_time: Duration,
    /// Show payloads completely; the audit trail keeps that, and needs a --reason
    #[arg(long, global = true)]
    pub reveal: bool,
}

impl General {
    /// The name of the profile. An empty variable counts as not set.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref().filter(|name| !name.is_empty())
    }
}

/// The forms of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people.
    Table,
    /// One JSON value.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// Only the exit code.
    None,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Count messages by collection, type and state; show streams, the oplog and the command queue
    Status,
    /// List messages
    List(ListArgs),
    /// Show one message with its history, its stored form and its `CloudEvent`
    Show(MessageArgs),
    /// Show one document's outbox in order, what blocks what, and its inboxes
    Document {
        /// The collection, as in shop.orders
        #[arg(value_name = "COLLECTION")]
        collection: String,
        /// The document's _id: text, a number, an `ObjectId`, a UUID, or extended JSON
        #[arg(value_name = "KEY")]
        key: String,
    },
    /// Explain why a message is not delivered now
    Explain(MessageArgs),
    /// Group dead and failing messages by type, reason and error
    Groups {
        /// Conditions on type, collection, time, and state:dead or state:retrying
        #[arg(value_name = "QUERY")]
        query: Vec<String>,
        /// The number of groups to show
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Check the servers and the setup
    Doctor,
    /// Advise on the delay that keeps an objective
    Advise(AdviseArgs),
    /// Make dead messages due again
    Replay(ActArgs),
    /// Move dead messages from their outboxes to the archive
    Discard(ActArgs),
    /// Mark living messages dead, so that they are not delivered
    Kill(ActArgs),
    /// End claims, so that other processes can take the messages
    Release {
        /// The messages, and the reason
        #[command(flatten)]
        act: ActArgs,
        /// Accept that a message is delivered twice if the holder of its claim still works
        #[arg(long)]
        force: bool,
    },
    /// Return discarded messages from the archive to their outboxes
    Restore(RestoreArgs),
    /// List discarded messages
    Archive {
        /// The number of messages
        #[arg(long, short, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// List who did what, when and why
    Audit(AuditArgs),
}

/// The arguments of `list`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ListArgs {
    /// Conditions, as in: state:dead type:order.* since:24h
    #[arg(value_name = "QUERY")]
    pub query: Vec<String>,
    /// The number of messages on a page
    #[arg(long, short, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Continue after a page
    #[arg(long, value_name = "TOKEN", conflicts_with = "all")]
    pub after: Option<String>,
    /// All messages, as a stream
    #[arg(long)]
    pub all: bool,
    /// Allow reading whole collections, which also finds malformed elements
    #[arg(long)]
    pub scan: bool,
    /// The columns, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub columns: Vec<String>,
}

/// The arguments that name a message.
#[derive(Debug, Clone, ClapArgs)]
pub struct MessageArgs {
    /// The message's id
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where to search: collection:… and doc:…
    #[arg(value_name = "QUERY")]
    pub within: Vec<String>,
    /// Allow reading a whole collection that has no index
    #[arg(long)]
    pub scan: bool,
    /// Why the payload is revealed, for the audit trail
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Who, for the audit trail
    #[arg(long, value_name = "NAME", env = "USER")]
    pub by: Option<String>,
}

/// The arguments of `advise`.
#[derive(Debug, Clone, ClapArgs)]
pub struct AdviseArgs {
    /// How late a message may be
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub sla: Duration,
    /// The rescuer's delay
    #[arg(long, default_value = "15s", value_parser = duration)]
    pub delay: Duration,
    /// The application's inline lease
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub inline_lease: Duration,
    /// The dispatchers' claim lease
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub claim_lease: Duration,
    /// The rescuer's sweep interval
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub sweep_interval: Duration,
}

/// The arguments of an act.
#[derive(Debug, Clone, ClapArgs)]
pub struct ActArgs {
    /// Ids of messages, or conditions as in `list`
    #[arg(value_name = "ID|QUERY", required = true)]
    pub messages: Vec<String>,
    /// Do it; without this option, only show which messages are taken
    #[arg(long, requires = "reason")]
    pub execute: bool,
    /// Why, for the audit trail
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Who, for the audit trail
    #[arg(long, value_name = "NAME", env = "USER")]
    pub by: Option<String>,
    /// Do nothing if more messages match
    #[arg(long, value_name = "NUMBER", default_value_t = outbox_operate::act::DEFAULT_CEILING)]
    pub ceiling: usize,
    /// Do nothing if another number of messages matches
    #[arg(long, value_name = "NUMBER")]
    pub expect: Option<usize>,
    /// Allow reading whole collections
    #[arg(long)]
    pub scan: bool,
    /// The name of the profile, if it is marked as production
    #[arg(long, value_name = "PROFILE")]
    pub confirm: Option<String>,
}

/// The arguments of `restore`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RestoreArgs {
    /// Ids of discarded messages
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// Accept that a message is delivered twice: restore it even if the audit trail has no finished discard of it, or a
    /// later act
    #[arg(long)]
    pub force: bool,
    /// Why, for the audit trail
    #[arg(long, value_name = "TEXT", required = true)]
    pub reason: Option<String>,
    /// Who, for the audit trail
    #[arg(long, value_name = "NAME", env = "USER")]
    pub by: Option<String>,
    /// The name of the profile, if it is marked as production
    #[arg(long, value_name = "PROFILE")]
    pub confirm: Option<String>,
}

/// The arguments of `audit`.
#[derive(Debug, Clone, ClapArgs)]
pub struct AuditArgs {
    /// Only acts on this message
    #[arg(long, value_name = "ID")]
    pub message: Option<String>,
    /// Only acts of this operation
    #[arg(long, value_name = "ID")]
    pub operation: Option<String>,
    /// Only acts of this last time, for example 24h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub since: Option<Duration>,
    /// The number of acts
    #[arg(long, short, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// First add the outcomes of acts that were interrupted
    #[arg(long)]
    pub settle: bool,
}

/// A terminal without a width sets the variable to nothing or to zero.
fn width(text: &str) -> Result<usize, String> {
    match text.trim() {
        "" | "0" => Ok(WIDTH),
        number => number.parse().map_err(|_| "write a number of columns, as in 120".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "write a duration with its unit, as in 250ms, 30s, 2m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}

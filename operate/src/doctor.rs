//! Checks the servers and the setup. Each finding names the heading in docs/operations.md that says what to do.
//!
//! # Guarantees
//! A check that fails is itself a finding, and the other checks continue. No check reads more than a few documents.

use std::time::Duration;

use mongodb::{
    bson::{Bson, DateTime, Document, doc},
    options::{Hint, ReadPreference, ReadPreferenceOptions, SelectionCriteria},
};
use serde::Serialize;
use strum::IntoEnumIterator;

use crate::{
    Operator,
    catalogue::{Catalogue, WatchedCollection},
    error::OperateError,
    status::{CommandQueue, CommandQueueState},
    streams::{OplogWindow, StreamView},
    text,
};

/// The oldest major version that the services support.
const OLDEST_MONGODB: u32 = 6;
/// A difference of clocks that shortens claims noticeably.
const CLOCKS_MAY_DIFFER: Duration = Duration::from_secs(1);
/// A due message that the sweeps should have found several times.
const LATE: Duration = Duration::from_mins(5);
/// A position that is not saved for this long has no owner that works.
const SILENT: Duration = Duration::from_mins(2);
/// The number of waiting commands that is more than a moment's work.
const MANY_COMMANDS: u32 = 10_000;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Messages are late, or can be lost.
    Problem,
    /// It may become a problem, or could not be checked.
    Warning,
    /// It is as it must be.
    Fine,
}

/// A part of the setup that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, strum::EnumIter, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Check {
    /// The version of MongoDB, and that it is a replica set or a sharded cluster.
    Server,
    /// The clocks of the members.
    Clocks,
    /// That the patterns match collections which can have outboxes.
    Collections,
    /// The indexes.
    Indexes,
    /// That the server deletes no documents with messages.
    Retention,
    /// The owners of the streams.
    Leases,
    /// The positions, compared with the oplog.
    Positions,
    /// The command queue.
    Commands,
    /// Dead messages.
    Dead,
    /// Messages that are due for long.
    Backlog,
    /// Documents without room for a claim.
    Oversized,
}

impl Check {
    /// All checks, in the order in which they are made.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::iter()
    }

    /// The name.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The heading in docs/operations.md about a problem that this check finds.
    pub fn runbook(self) -> &'static str {
        match self {
            Self::Server => "A server does not fit",
            Self::Clocks => "Claims are lost",
            Self::Collections | Self::Indexes | Self::Retention => "A collection needs attention",
            Self::Leases => "A standby does not take over",
            Self::Positions => "The position is lost",
            Self::Commands | Self::Backlog => "Backlog",
            Self::Dead => "Dead messages appear",
            Self::Oversized => "Documents grow too large",
        }
    }
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The part that was checked.
    pub check: Check,
    /// How serious it is.
    pub level: Level,
    /// The finding, as a sentence.
    pub sentence: String,
    /// The heading in docs/operations.md, unless all is well.
    pub runbook: Option<&'static str>,
}

impl Finding {
    fn new(check: Check, level: Level, sentence: impl Into<String>) -> Self {
        let runbook = (level != Level::Fine).then_some(check.runbook());
        Self { check, level, sentence: sentence.into(), runbook }
    }

    /// The finding that a check could not be made.
    fn unchecked(check: Check, error: &OperateError) -> Self {
        let runbook = match error {
            OperateError::Refused { .. } => "Privileges",
            _ => check.runbook(),
        };
        Self {
            check,
            level: Level::Warning,
            sentence: format!("It could not be checked: {error}."),
            runbook: Some(runbook),
        }
    }
}

/// The findings of one check.
type Findings = Result<Vec<Finding>, OperateError>;

impl Operator {
    /// Makes all checks.
    ///
    /// # Errors
    /// An error only if MongoDB can't be reached at all.
    pub async fn doctor(&self) -> Result<Vec<Finding>, OperateError> {
        let now = self.now().await?;
        let mut findings = Vec::new();
        keep(&mut findings, Check::Server, self.check_server().await);
        keep(&mut findings, Check::Clocks, self.check_clocks().await);

        match self.catalogue().await {
            Ok(catalogue) => {
                findings.extend(collections(&catalogue));
                findings.extend(indexes(&catalogue));
                findings.extend(retention(&catalogue));
                keep(&mut findings, Check::Dead, self.check_dead(&catalogue).await);
                keep(&mut findings, Check::Backlog, self.check_backlog(&catalogue, now).await);
            }
            Err(error) => findings.push(Finding::unchecked(Check::Collections, &error)),
        }
        match self.streams().await {
            Ok(streams) => {
                findings.extend(leases(&streams, now));
                let window = self.oplog_window().await;
                keep(&mut findings, Check::Positions, window.map(|window| positions(&streams, &window, now)));
            }
            Err(error) => findings.push(Finding::unchecked(Check::Leases, &error)),
        }
        keep(&mut findings, Check::Oversized, self.check_oversized().await);
        if let Some(queue) = self.command_queue().await {
            findings.extend(commands(&queue));
        }

        findings.sort_by_key(|finding| finding.level);
        Ok(findings)
    }

    async fn check_server(&self) -> Findings {
        let what = || "the version of the server";
        let admin = self.client.database("admin");
        let build =
            admin.run_command(doc! { "buildInfo": 1 }).await.map_err(OperateError::reading(what()))?;
        let hello = admin.run_command(doc! { "hello": 1 }).await.map_err(OperateError::reading(what()))?;
        Ok(server(build.get_str("version").unwrap_or("unknown"), &hello))
    }

    /// Compares the clocks of the primary and of a secondary with this machine's, so that both are compared with each
    /// other.
    async fn check_clocks(&self) -> Findings {
        let primary = self.offset(ReadPreference::Primary).await?;
        let options = ReadPreferenceOptions::default();
        let secondary = self.offset(ReadPreference::SecondaryPreferred { options: Some(options) }).await?;
        let apart = Duration::from_millis(primary.abs_diff(secondary));
        let here = Duration::from_millis(primary.unsigned_abs());

        Ok(vec![if apart > CLOCKS_MAY_DIFFER {
            let apart = text::duration(apart);
            let sentence = format!(
                "The clocks of two members differ by {apart}: after a failover, claims end too early or late."
            );
            Finding::new(Check::Clocks, Level::Problem, sentence)
        } else if here > CLOCKS_MAY_DIFFER {
            let here = text::duration(here);
            let sentence = format!(
                "This machine's clock and the primary's differ by {here}; only the primary's counts."
            );
            Finding::new(Check::Clocks, Level::Warning, sentence)
        } else {
            Finding::new(Check::Clocks, Level::Fine, "The clocks of the members agree within a second.")
        }])
    }

    /// The milliseconds by which a member's clock is ahead of this machine's clock.
    async fn offset(&self, member: ReadPreference) -> Result<i64, OperateError> {
        let before = DateTime::now().timestamp_millis();
        let hello = self
            .client
            .database("admin")
            .run_command(doc! { "hello": 1 })
            .selection_criteria(SelectionCriteria::ReadPreference(member))
            .await
            .map_err(OperateError::reading("a member's clock"))?;
        let after = DateTime::now().timestamp_millis();

        let there = hello.get_datetime("localTime").map_or(before, |time| time.timestamp_millis());
        // The member read its clock at some time in between.
        Ok(there - there.clamp(before, after))
    }

    async fn check_dead(&self, catalogue: &Catalogue) -> Findings {
        let mut findings = Vec::new();
        for collection in &catalogue.collections {
            let Some(index) = &collection.dead_index else { continue };
            let dead = doc! { "outbox.dead_at": { "$gt": DateTime::MIN } };
            if self.has_one(collection, index, dead).await? {
                let sentence = format!("{} has dead messages.", collection.namespace);
                findings.push(Finding::new(Check::Dead, Level::Problem, sentence));
            }
        }
        Ok(or_fine(findings, Check::Dead, "No message is dead."))
    }

    async fn check_backlog(&self, catalogue: &Catalogue, now: DateTime) -> Findings {
        let mut findings = Vec::new();
        let late = crate::query::Moment::Ago(LATE).at(now);
        for collection in &catalogue.collections {
            let Some(index) = &collection.due_index else { continue };
            let due = doc! {
                "outbox.id": { "$exists": true },
                "outbox": { "$elemMatch": { "available_at": { "$lte": late }, "dead_at": Bson::Null } },
            };
            if self.has_one(collection, index, due).await? {
                let sentence = format!(
                    "{} has messages that have been due for more than {}.",
                    collection.namespace,
                    text::duration(LATE)
                );
                findings.push(Finding::new(Check::Backlog, Level::Problem, sentence));
            }
        }
        let fine = format!("No message has been due for {}.", text::duration(LATE));
        Ok(or_fine(findings, Check::Backlog, &fine))
    }

    async fn has_one(
        &self,
        collection: &WatchedCollection,
        index: &str,
        filter: Document,
    ) -> Result<bool, OperateError> {
        let found = self
            .collection(&collection.namespace)
            .find_one(filter)
            .projection(doc! { "_id": 1 })
            .hint(Hint::Name(index.to_owned()))
            .max_time(self.settings.max_time)
            .await;
        Ok(found.map_err(OperateError::reading(collection.namespace.to_string()))?.is_some())
    }

    async fn check_oversized(&self) -> Findings {
        let found = match self.oversized_documents().await? {
            0 => Vec::new(),
            count => {
                let sentence = format!("{count} documents have no room for a claim.");
                vec![Finding::new(Check::Oversized, Level::Problem, sentence)]
            }
        };
        Ok(or_fine(found, Check::Oversized, "Every document has room for a claim."))
    }
}

fn keep(findings: &mut Vec<Finding>, check: Check, found: Findings) {
    match found {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::unchecked(check, &error)),
    }
}

fn or_fine(mut findings: Vec<Finding>, check: Check, sentence: &str) -> Vec<Finding> {
    if findings.is_empty() {
        findings.push(Finding::new(check, Level::Fine, sentence));
    }
    findings
}

fn server(version: &str, hello: &Document) -> Vec<Finding> {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let is_set = hello.contains_key("setName") || hello.get_str("msg").is_ok_and(|kind| kind == "isdbgrid");
    let mut findings = Vec::new();
    if major.is_none_or(|major| major < OLDEST_MONGODB) {
        let sentence =
            format!("MongoDB is version {version}; the services need {OLDEST_MONGODB}.0 or later.");
        findings.push(Finding::new(Check::Server, Level::Problem, sentence));
    }
    if !is_set {
        let sentence = "MongoDB is neither a replica set nor a sharded cluster, so it has no change streams.";
        findings.push(Finding::new(Check::Server, Level::Problem, sentence));
    }
    or_fine(findings, Check::Server, &format!("MongoDB is version {version}, with change streams."))
}

fn collections(catalogue: &Catalogue) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pattern in &catalogue.unmatched {
        let sentence = format!("The pattern {pattern} matches no collection.");
        findings.push(Finding::new(Check::Collections, Level::Warning, sentence));
    }
    for name in &catalogue.unwatchable {
        let sentence = format!("{name} is a view or a time series, which can't have outboxes.");
        findings.push(Finding::new(Check::Collections, Level::Problem, sentence));
    }
    let fine = format!("{} watched collections exist.", catalogue.collections.len());
    or_fine(findings, Check::Collections, &fine)
}

fn indexes(catalogue: &Catalogue) -> Vec<Finding> {
    let mut findings = Vec::new();
    for collection in &catalogue.collections {
        let missing: Vec<&str> = [
            (collection.due_index.is_none(), "outbox_available_at"),
            (collection.dead_index.is_none(), "outbox_dead_at"),
        ]
        .into_iter()
        .filter_map(|(is_missing, name)| is_missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            let sentence = format!("{} lacks the index {}.", collection.namespace, missing.join(" and "));
            findings.push(Finding::new(Check::Indexes, Level::Problem, sentence));
        }
    }
    or_fine(findings, Check::Indexes, "Every collection has both indexes.")
}

fn retention(catalogue: &Catalogue) -> Vec<Finding> {
    let mut findings = Vec::new();
    for collection in &catalogue.collections {
        let name = &collection.namespace;
        if let Some(index) = &collection.ttl_index {
            let sentence =
                format!("The index {index} of {name} deletes documents, even with messages in them.");
            findings.push(Finding::new(Check::Retention, Level::Problem, sentence));
        }
        if collection.capped {
            let sentence =
                format!("{name} is capped: it drops its oldest documents, even with messages in them.");
            findings.push(Finding::new(Check::Retention, Level::Problem, sentence));
        }
    }
    or_fine(findings, Check::Retention, "The server deletes no document with messages.")
}

fn leases(streams: &[StreamView], now: DateTime) -> Vec<Finding> {
    if streams.is_empty() {
        let sentence = "No rescuer has ever run with this state database.";
        return vec![Finding::new(Check::Leases, Level::Problem, sentence)];
    }
    let mut findings = Vec::new();
    for stream in streams.iter().filter(|stream| !stream.is_owned(now)) {
        let sentence = format!("No rescuer owns the stream {}.", stream.stream);
        findings.push(Finding::new(Check::Leases, Level::Problem, sentence));
    }
    or_fine(findings, Check::Leases, "A rescuer owns every stream.")
}

fn positions(streams: &[StreamView], window: &OplogWindow, now: DateTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let OplogWindow::Unknown(reason) = window {
        let sentence = format!("The time that the oplog covers is unknown: {reason}.");
        findings.push(Finding {
            runbook: Some("Privileges"),
            ..Finding::new(Check::Positions, Level::Warning, sentence)
        });
    }
    for stream in streams {
        let name = &stream.stream;
        let Some(position) = stream.position else {
            let sentence = format!("The stream {name} has no position.");
            findings.push(Finding::new(Check::Positions, Level::Warning, sentence));
            continue;
        };
        let age = text::since(now, position);
        if let Some(limit) = window.limit().filter(|limit| age >= *limit / 4 * 3) {
            let sentence = format!(
                "The position of {name} is {} old, and the oplog covers {}.",
                text::duration(age),
                text::duration(limit)
            );
            findings.push(Finding::new(Check::Positions, Level::Problem, sentence));
        }
        if stream.saved_at.is_some_and(|saved| text::since(now, saved) > SILENT) {
            let sentence = format!("The position of {name} was not saved for {}.", text::duration(SILENT));
            let finding = Finding::new(Check::Positions, Level::Problem, sentence);
            findings.push(Finding { runbook: Some("The rescuer lags"), ..finding });
        }
    }
    or_fine(findings, Check::Positions, "The positions are recent, and the oplog reaches back behind them.")
}

fn commands(queue: &CommandQueue) -> Vec<Finding> {
    let name = &queue.queue;
    let (level, sentence, runbook) = match &queue.state {
        CommandQueueState::Missing => {
            (Level::Problem, format!("The command queue {name} does not exist."), "Backlog")
        }
        CommandQueueState::Unknown(reason) => {
            (Level::Warning, format!("RabbitMQ did not answer: {reason}."), "The broker is down")
        }
        CommandQueueState::Exists { consumers: 0, ready } => {
            (Level::Problem, format!("No dispatcher consumes {name}; {ready} commands wait."), "Backlog")
        }
        CommandQueueState::Exists { ready, .. } if *ready > MANY_COMMANDS => {
            (Level::Warning, format!("{ready} commands wait in {name}."), "Recover from a large backlog")
        }
        CommandQueueState::Exists { ready, consumers } => {
            let sentence = format!("{consumers} connections consume {name}; {ready} commands wait.");
            return vec![Finding::new(Check::Commands, Level::Fine, sentence)];
        }
    };
    vec![Finding { runbook: Some(runbook), ..Finding::new(Check::Commands, level, sentence) }]
}

//! Retryable writes: one command, repeated until each of its statements has a clear answer.
//!
//! # Flow
//! A command is a *retryable write*: repeated in the same session under the same number, the server answers for the
//! statements it has executed instead of executing them again.
//! 1. *Execute.* The command has a second of the server's time, and waits only briefly for the majority.
//! 2. *Decide.* A reply that leaves open what was executed (no answer, an interruption) decides nothing; the
//!    command is repeated. The same applies if some statements matched and some did not: the repeat names
//!    those that did.
//! 3. *Last.* Statements that were executed wait for the majority without a connection and without their
//!    [permit](crate::mongo::batching::BatchPermit), see [`majority`](crate::mongo::majority).
//!
//! # Guarantees
//! - "Nothing was written" is only said of a statement that never left, or whose fate a clean reply decides. A refusal of the
//!   whole command says nothing about an earlier try of it.
//! - A statement without a clean answer by its deadline is unknown.
//! - A document that somebody holds (an open transaction) delays no other: after a second of the server's time the
//!   statements go one by one, and those that were held go last. In between no connection is held.
//!
//! # Caveats
//! Through mongos no reply shows the oplog's time. There the command is repeated with a longer wait for the majority.

use std::{collections::VecDeque, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use mongodb::{
    Client, Namespace,
    bson::{Document, doc},
    error::{Error as DriverError, ErrorKind},
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    encoding::codec,
    mongo::{
        batching::BatchPermit,
        concern::MAJORITY_TIMEOUT,
        deadline::no_answer,
        departure::leave_for_a_server,
        doubt::{AfterFailure, GivenUp, after_failure, given_up},
        error_codes,
        majority::{Majority, MajorityState, OpTime},
        reply::{OUT_OF_TIME, Reply, Said},
        session::{Session, Sessions},
        statement::WriteOutcome,
        write_command::{Retry, WriteCommand, WriteKind, millis},
        write_request::AskedWrite,
    },
};

/// A command that takes longer than this to execute has met a locked document.
const LONGEST: Duration = Duration::from_secs(1);
/// The same for a statement that is sent alone because a document of its batch is locked.
const LONGEST_APART: Duration = Duration::from_millis(100);
/// How long a command keeps its connection for the majority.
const BRIEFLY: Duration = Duration::from_millis(250);
/// The pause before a locked document is retried.
const HELD_PAUSE: Duration = Duration::from_millis(10);
/// The pauses between other tries.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Sends retryable writes: with the sessions that they share, and one view of the majority.
pub(crate) struct RetryableWrites {
    pub(crate) client: Client,
    sessions: Sessions,
    majority: Majority,
}

impl RetryableWrites {
    pub(crate) fn new(client: Client) -> Self {
        Self { sessions: Sessions::new(client.clone()), majority: Majority::new(client.clone()), client }
    }

    /// Sends writes of one kind on one collection and answers each. The returned ones were refused as a
    /// whole, and have certainly not been executed.
    pub(crate) async fn send(&self, writes: Vec<AskedWrite>, permit: Option<BatchPermit>) -> Vec<AskedWrite> {
        let Some(first) = writes.first() else { return writes };
        let (kind, namespace) = (first.request.kind, first.request.namespace.clone());
        let mut deadline = first.request.deadline;
        for write in &writes {
            deadline = deadline.max(write.request.deadline);
        }

        // All of them share the number of this session's next write; without a session, none was sent.
        let session = match self.sessions.take().await {
            Ok(session) => session,
            Err(error) => {
                for write in writes {
                    write.answer(WriteOutcome::Failed(error_codes::not_sent(error.to_string())));
                }
                return Vec::new();
            }
        };

        let mut batch = Batch {
            shared: self,
            session,
            kind,
            namespace,
            open: (0..).zip(writes).map(|(place, write)| Open::new(place, write)).collect(),
            executed: Vec::new(),
            written_at: None,
            refused: Vec::new(),
            manner: SendForm::default(),
            permit,
            pauses: pauses(),
            deadline,
            is_foreign: false,
            last_error: None,
        };
        batch.run().await;

        // If another has used a number, the whole session is unusable.
        if !batch.is_foreign {
            self.sessions.put_back(batch.session);
        }
        batch.refused
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

/// A statement without an answer.
struct Open {
    /// Its name in every command of the batch.
    place: i32,
    write: AskedWrite,
    /// Whether a command without a clear reply may have executed it.
    in_doubt: bool,
    /// Whether it took too long when it was sent alone.
    is_held: bool,
}

impl Open {
    fn new(place: i32, write: AskedWrite) -> Self {
        Self { place, write, in_doubt: false, is_held: false }
    }

    fn has_left(&self) -> bool {
        self.write.request.departure.has_left()
    }
}

/// How the next command is sent.
#[derive(Default, Clone, Copy)]
struct SendForm {
    /// Statement by statement.
    apart: bool,
    /// Only to ask which statements matched.
    asking: bool,
    /// With the whole wait for the majority, if no reply shows the oplog's time.
    patient: bool,
}

struct Batch<'a> {
    shared: &'a RetryableWrites,
    session: Session,
    kind: WriteKind,
    namespace: Namespace,
    open: VecDeque<Open>,
    /// The statements, each with its outcome once the majority has it.
    executed: Vec<(Open, WriteOutcome)>,
    /// The latest time in the oplog that the majority has to reach for that.
    written_at: Option<OpTime>,
    refused: Vec<AskedWrite>,
    manner: SendForm,
    /// The permit, held while the server is busy with the batch.
    permit: Option<BatchPermit>,
    pauses: ExponentialBackoff,
    deadline: Instant,
    /// Whether another has used the session's number.
    is_foreign: bool,
    last_error: Option<DriverError>,
}

/// The next step after a command.
enum NextTry {
    AtOnce,
    Pause(Duration),
    GiveUp,
}

impl Batch<'_> {
    async fn run(&mut self) {
        loop {
            self.open.retain(|open| !open.write.is_abandoned());

            // Statements on locked documents go last, so the answers of the others don't wait for them.
            if !self.executed.is_empty() && self.open.front().is_none_or(|open| open.is_held) {
                self.confirm().await;
                continue;
            }
            if self.open.is_empty() {
                return;
            }

            match self.step().await {
                NextTry::AtOnce => {}
                NextTry::Pause(pause) if Instant::now() + pause < self.deadline => sleep(pause).await,
                NextTry::Pause(_) | NextTry::GiveUp => return self.give_up(),
            }
        }
    }

    /// Sends a command, and evaluates its outcome.
    async fn step(&mut self) -> NextTry {
        let count = if self.manner.apart { 1 } else { self.open.len() };
        let is_first = !self.open.iter().any(Open::has_left);

        let sent = match timeout_at(self.deadline, self.send(count)).await {
            Ok(sent) => sent.and_then(|reply| Reply::read(&reply)),
            Err(_elapsed) => {
                self.doubt(count);
                return NextTry::GiveUp;
            }
        };

        match sent {
            Ok(reply) if is_first && reply.is_repeated() => {
                // Another has used the number, so the server's answers are not about these statements.
                self.is_foreign = true;
                self.doubt(count);
                self.last_error = Some(error_codes::lost("the server treated a new write as a repeated one"));
                NextTry::GiveUp
            }
            Ok(reply) => self.heard(reply, count),
            Err(error) => {
                let next = self.failed(&error, count);
                self.last_error = Some(error);
                next
            }
        }
    }

    /// A reply came.
    fn heard(&mut self, reply: Reply, count: usize) -> NextTry {
        let asking = std::mem::take(&mut self.manner.asking);
        let places: Vec<i32> = self.open.iter().take(count).map(|open| open.place).collect();
        let is_repeated = reply.is_repeated();

        // Without the majority so far, an answer is kept until the majority has reached the oplog's time of
        // the reply. A reply without that time is inconclusive.
        if let Some(concern) = &reply.concern {
            self.last_error = Some(error_codes::lost(&concern.text));
            self.doubt(count);
            match reply.written_at {
                Some(at) if concern.is_late => {
                    self.written_at = Some(self.written_at.map_or(at, |before| before.max(at)));
                }
                _ => {
                    self.manner.patient |= concern.is_late;
                    return self.pause();
                }
            }
        }

        match reply.of(&places) {
            Said::Each(each) => self.note(each),
            Said::Some => {
                self.doubt(count);
                // If the server doesn't report which were repeated, the statements are sent one by one.
                self.manner.apart |= asking && !is_repeated;
                self.manner.asking = !asking;
                NextTry::AtOnce
            }
            Said::Nonsense => {
                self.doubt(count);
                self.last_error = Some(error_codes::lost("the reply's counts are inconsistent"));
                self.pause()
            }
        }
    }

    /// Answers the first statements, or keeps their outcomes until the majority has them.
    fn note(&mut self, each: Vec<Option<WriteOutcome>>) -> NextTry {
        let mut interrupted = false;
        for outcome in each {
            let Some(mut open) = self.open.pop_front() else { break };
            match outcome {
                // The majority may not have it yet.
                Some(outcome) if self.written_at.is_some() => self.executed.push((open, outcome)),
                Some(outcome) => open.write.answer(outcome),
                None => {
                    interrupted = true;
                    open.in_doubt = true;
                    self.open.push_back(open);
                }
            }
        }

        if interrupted { self.pause() } else { NextTry::AtOnce }
    }

    /// No reply came, or one that refuses the command as a whole.
    fn failed(&mut self, error: &DriverError, count: usize) -> NextTry {
        let is_in_doubt = self.open.iter().take(count).any(|open| open.in_doubt);
        // No answer will come: the client was shut down.
        if matches!(*error.kind, ErrorKind::Shutdown) {
            return NextTry::GiveUp;
        }

        match after_failure(error_codes::verdict(error), is_in_doubt) {
            AfterFailure::Repeat => self.pause(),
            AfterFailure::NotSent => {
                for open in self.open.drain(..count) {
                    open.write.answer(WriteOutcome::Failed(error.clone()));
                }
                NextTry::AtOnce
            }
            AfterFailure::InDoubt => {
                self.doubt(count);
                if error_codes::code(error) != Some(OUT_OF_TIME) {
                    return self.pause();
                }

                // A statement on a locked document waits behind the others.
                if self.manner.apart || count == 1 {
                    self.open.front_mut().into_iter().for_each(|open| open.is_held = true);
                    self.open.rotate_left(1);
                }
                self.manner.apart = true;
                NextTry::Pause(HELD_PAUSE)
            }
            AfterFailure::RepeatApart => {
                self.manner.apart = true;
                self.open.rotate_left(1);
                self.pause()
            }
            AfterFailure::Refused => {
                self.refused.extend(self.open.drain(..count).map(|open| open.write));
                NextTry::AtOnce
            }
        }
    }

    /// Waits until the majority has what was executed, and answers.
    async fn confirm(&mut self) {
        self.permit = None;
        let executed = std::mem::take(&mut self.executed);
        let Some(written_at) = self.written_at.take() else { return };

        match timeout_at(self.deadline, self.shared.majority.wait(written_at)).await {
            Ok(MajorityState::Lasts) => {
                for (open, outcome) in executed {
                    open.write.answer(outcome);
                }
            }
            // The new primary has executed them, or does so now.
            Ok(MajorityState::NewTerm) => self.open.extend(executed.into_iter().map(|(open, _)| open)),
            Err(_elapsed) => {
                for (open, outcome) in executed {
                    open.write.answer(unless_it_may_last(outcome, self.last_error.as_ref()));
                }
            }
        }
    }

    async fn send(&mut self, count: usize) -> Result<Document, DriverError> {
        let (concern, longest) = self.concern();
        let mut statements = Vec::with_capacity(count);
        let mut places = Vec::with_capacity(count);
        let mut leaving = Vec::with_capacity(count);
        for open in self.open.iter().take(count) {
            statements.push(open.write.request.statement.as_ref());
            places.push(open.place);
            leaving.push(open.write.request.departure.clone());
        }

        let command = WriteCommand {
            kind: self.kind,
            collection: &self.namespace.coll,
            statements,
            retry: Some(Retry { number: self.session.number, places }),
            concern,
            longest,
        };
        let command = codec::encode(&command).map_err(|error| error_codes::unencodable(error.to_string()))?;

        let database = self.shared.client.database(&self.namespace.db);
        let session = &mut self.session.session;
        let criteria = leave_for_a_server(leaving);
        database.run_raw_command(command).session(session).selection_criteria(criteria).await
    }

    /// The write concern of the next command, and how long the server may work at it.
    fn concern(&self) -> (Document, Duration) {
        let is_held = self.open.front().is_some_and(|open| open.is_held);
        let longest = if self.manner.apart && !is_held { LONGEST_APART } else { LONGEST };
        if self.manner.patient {
            (majority_within(MAJORITY_TIMEOUT), MAJORITY_TIMEOUT + LONGEST)
        } else if self.manner.asking {
            (doc! { "w": 1 }, longest)
        } else if self.manner.apart {
            // All of them wait together, once each has been executed.
            (majority_within(Duration::from_millis(1)), longest)
        } else {
            (majority_within(BRIEFLY), longest)
        }
    }

    /// Marks the first `count` statements that were sent as possibly executed.
    fn doubt(&mut self, count: usize) {
        for open in self.open.iter_mut().take(count) {
            open.in_doubt |= open.has_left();
        }
    }

    fn pause(&mut self) -> NextTry {
        NextTry::Pause(self.pauses.next().unwrap_or(LONGEST_PAUSE))
    }

    /// No clear reply arrived in time.
    fn give_up(&mut self) {
        let error = self.last_error.take().unwrap_or_else(|| error_codes::lost(no_answer()));
        for (open, outcome) in std::mem::take(&mut self.executed) {
            open.write.answer(unless_it_may_last(outcome, Some(&error)));
        }

        for open in std::mem::take(&mut self.open) {
            let outcome = match given_up(open.in_doubt) {
                GivenUp::Unknown => WriteOutcome::Unknown(error.clone()),
                GivenUp::NotSent => WriteOutcome::Failed(error_codes::not_sent(error.to_string())),
            };
            open.write.answer(outcome);
        }
    }
}

fn majority_within(time: Duration) -> Document {
    doc! { "w": "majority", "wtimeout": millis(time) }
}

/// The outcome if the majority did not confirm it in time.
fn unless_it_may_last(outcome: WriteOutcome, error: Option<&DriverError>) -> WriteOutcome {
    match outcome {
        WriteOutcome::Done => {
            WriteOutcome::Unknown(error.cloned().unwrap_or_else(|| error_codes::lost(no_answer())))
        }
        other => other,
    }
}

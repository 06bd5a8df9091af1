//! Statements on their way: one command, repeated until each statement has a clean answer.
//!
//! # Flow
//! A command is a *retryable write*: repeated in the same session under the same number, the server answers for the
//! statements it has executed instead of executing them again.
//! 1. *Execute.* The command has a second of the server's time, and waits only briefly for the majority.
//! 2. *Decide.* A reply that leaves open what was executed (no answer, an interruption) decides nothing; the command is
//!    repeated. So it is where some statements matched and some did not: the repeat names those that did.
//! 3. *Last.* What was executed waits for the majority without a connection and without its place in the
//!    [lane](crate::mongo::batching), see [`majority`](crate::mongo::majority).
//!
//! # Guarantees
//! - "Nothing was written" is only said of a statement that never left, or whose fate a clean reply tells. A refusal of the
//!   whole command says nothing about an earlier try of it.
//! - A statement without a clean answer by its deadline is unknown.
//! - A document that somebody holds (an open transaction) holds up nobody else: after a second of the server's time the
//!   statements go one by one, and those that were held go last. In between no connection is held.
//!
//! # Caveats
//! Through mongos no reply tells where the oplog is. There the command is repeated with a longer wait for the majority.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use mongodb::{
    Client, Namespace, ServerInfo, ServerType,
    bson::{Document, doc},
    error::{Error as DriverError, ErrorKind},
    options::SelectionCriteria,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    encoding::codec,
    mongo::{
        batching::Place,
        concern::{MAJORITY_TIMEOUT, primary},
        error_codes::{self, Verdict},
        majority::{Known, Majority, OpTime},
        reply::{OUT_OF_TIME, Reply, Said},
        request::{Departure, Request},
        session::{Session, Sessions},
        write::{Command, Kind, Retry, WriteOutcome, millis, no_answer},
    },
};

/// A command that takes longer than this to execute has met a document that somebody holds.
const LONGEST: Duration = Duration::from_secs(1);
/// The same for a statement that goes by itself because somebody holds one of its batch.
const LONGEST_APART: Duration = Duration::from_millis(100);
/// How long a command keeps its connection for the majority.
const BRIEFLY: Duration = Duration::from_millis(250);
/// The pause before a held document is tried again.
const HELD_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What batches share.
pub(crate) struct Wire {
    pub(crate) client: Client,
    sessions: Sessions,
    majority: Majority,
}

impl Wire {
    pub(crate) fn new(client: Client) -> Self {
        Self { sessions: Sessions::new(client.clone()), majority: Majority::new(client.clone()), client }
    }
}

/// Sends statements of one kind on one collection and answers each. Those that come back were refused as a whole, and
/// have certainly not been executed.
pub(crate) async fn settle(wire: &Wire, requests: Vec<Request>, place: Option<Place>) -> Vec<Request> {
    let Some(first) = requests.first() else { return requests };
    let (kind, namespace) = (first.kind, first.namespace.clone());
    let deadline = requests.iter().map(|request| request.deadline).fold(first.deadline, Instant::max);
    let session = match wire.sessions.take().await {
        Ok(session) => session,
        Err(error) => {
            for request in requests {
                request.answer.send(WriteOutcome::Failed(error_codes::not_sent(error.to_string()))).ok();
            }
            return Vec::new();
        }
    };

    let mut batch = Batch {
        wire,
        session,
        kind,
        namespace,
        open: (0..).zip(requests).map(|(place, request)| Open::new(place, request)).collect(),
        executed: Vec::new(),
        written_at: None,
        refused: Vec::new(),
        mode: Mode::default(),
        place,
        pauses: pauses(),
        deadline,
        is_foreign: false,
    };
    batch.run().await;
    if !batch.is_foreign {
        wire.sessions.put_back(batch.session);
    }
    batch.refused
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

/// A statement without an answer.
struct Open {
    /// Its name in every command of the batch.
    place: i32,
    request: Request,
    /// Whether a command may have executed it without a clean reply.
    in_doubt: bool,
    /// Whether it took too long when it went by itself.
    is_held: bool,
}

impl Open {
    fn new(place: i32, request: Request) -> Self {
        Self { place, request, in_doubt: false, is_held: false }
    }

    fn answer(self, answer: WriteOutcome) {
        answer_to(self.request.answer, answer);
    }
}

/// A caller may have gone.
fn answer_to(caller: oneshot::Sender<WriteOutcome>, answer: WriteOutcome) {
    let _gone = caller.send(answer);
}

/// How the next command is sent.
#[derive(Default, Clone, Copy)]
struct Mode {
    /// Statement by statement.
    apart: bool,
    /// Only to ask which statements matched.
    asking: bool,
    /// With all of the wait for the majority, where no reply tells the oplog's time.
    patient: bool,
}

struct Batch<'a> {
    wire: &'a Wire,
    session: Session,
    kind: Kind,
    namespace: Namespace,
    open: VecDeque<Open>,
    /// With the answer that each gets once the majority has it.
    executed: Vec<(Open, WriteOutcome)>,
    /// The latest time in the oplog that the majority has to reach for that.
    written_at: Option<OpTime>,
    refused: Vec<Request>,
    mode: Mode,
    /// Held while the server is busy with the batch.
    place: Option<Place>,
    pauses: ExponentialBackoff,
    deadline: Instant,
    /// Whether the session's number turned out to be used by another.
    is_foreign: bool,
}

/// What comes after a command.
enum Next {
    AtOnce,
    Pause(Duration),
    GiveUp,
}

impl Batch<'_> {
    async fn run(&mut self) {
        let mut last_error = None;
        loop {
            // Nobody waits for the answer any more.
            self.open.retain(|open| !open.request.answer.is_closed());
            if !self.executed.is_empty() && self.open.front().is_none_or(|open| open.is_held) {
                self.confirm(&mut last_error).await;
                continue;
            }
            if self.open.is_empty() {
                return;
            }

            match self.step(&mut last_error).await {
                Next::AtOnce => {}
                Next::Pause(pause) if Instant::now() + pause < self.deadline => sleep(pause).await,
                Next::Pause(_) | Next::GiveUp => return self.give_up(last_error),
            }
        }
    }

    /// Sends a command, and draws what can be drawn from its outcome.
    async fn step(&mut self, last_error: &mut Option<DriverError>) -> Next {
        let count = if self.mode.apart { 1 } else { self.open.len() };
        let is_first = !self.open.iter().any(|open| open.request.departure.has_left());
        let sent = match timeout_at(self.deadline, self.send(count)).await {
            Ok(sent) => sent.and_then(|reply| Reply::read(&reply)),
            Err(_elapsed) => {
                self.doubt(count);
                return Next::GiveUp;
            }
        };
        match sent {
            Ok(reply) if is_first && reply.is_repeated() => {
                // The number is another's: nothing that the server says of it is about these statements.
                self.is_foreign = true;
                self.doubt(count);
                *last_error =
                    Some(error_codes::lost("the server took a new write for one that was repeated"));
                Next::GiveUp
            }
            Ok(reply) => self.heard(reply, count, last_error),
            Err(error) => {
                let next = self.failed(&error, count);
                *last_error = Some(error);
                next
            }
        }
    }

    /// A reply came.
    fn heard(&mut self, reply: Reply, count: usize, last_error: &mut Option<DriverError>) -> Next {
        let asking = std::mem::take(&mut self.mode.asking);
        let places: Vec<i32> = self.open.iter().take(count).map(|open| open.place).collect();
        let is_repeated = reply.is_repeated();
        if let Some(concern) = &reply.concern {
            *last_error = Some(error_codes::lost(&concern.text));
            self.doubt(count);
            match reply.written_at {
                Some(at) if concern.is_late => {
                    self.written_at = Some(self.written_at.map_or(at, |before| before.max(at)));
                }
                _ => {
                    self.mode.patient |= concern.is_late;
                    return self.pause();
                }
            }
        }

        match reply.of(&places) {
            Said::Each(each) => self.note(each),
            Said::Some => {
                self.doubt(count);
                // A server that doesn't say which were repeated is asked one by one.
                self.mode.apart |= asking && !is_repeated;
                self.mode.asking = !asking;
                Next::AtOnce
            }
            Said::Nonsense => {
                self.doubt(count);
                *last_error = Some(error_codes::lost("the reply does not add up"));
                self.pause()
            }
        }
    }

    /// Answers the first statements, or keeps their answers until the majority has them.
    fn note(&mut self, each: Vec<Option<WriteOutcome>>) -> Next {
        let mut interrupted = false;
        for answer in each {
            let Some(mut open) = self.open.pop_front() else { break };
            match answer {
                Some(answer) if self.written_at.is_some() => self.executed.push((open, answer)),
                Some(answer) => open.answer(answer),
                None => {
                    interrupted = true;
                    open.in_doubt = true;
                    self.open.push_back(open);
                }
            }
        }
        if interrupted { self.pause() } else { Next::AtOnce }
    }

    /// No reply came, or one that refuses the command as a whole.
    fn failed(&mut self, error: &DriverError, count: usize) -> Next {
        let is_in_doubt = self.open.iter().take(count).any(|open| open.in_doubt);
        match error_codes::verdict(error) {
            // There will be no other answer.
            Verdict::NotSent if matches!(*error.kind, ErrorKind::Shutdown) => Next::GiveUp,
            Verdict::NotSent if is_in_doubt => self.pause(),
            // Nothing left, so each can have the driver's own error at once.
            Verdict::NotSent => {
                for open in self.open.drain(..count) {
                    open.answer(WriteOutcome::Failed(error.clone()));
                }
                Next::AtOnce
            }
            Verdict::Unknown => {
                self.doubt(count);
                if error_codes::code(error) != Some(OUT_OF_TIME) {
                    return self.pause();
                }
                // One that is held waits behind the others.
                if self.mode.apart || count == 1 {
                    self.open.front_mut().into_iter().for_each(|open| open.is_held = true);
                    self.open.rotate_left(1);
                }
                self.mode.apart = true;
                Next::Pause(HELD_PAUSE)
            }
            // It is about this try: an earlier one may have been executed.
            Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused if is_in_doubt => {
                self.mode.apart = true;
                self.open.rotate_left(1);
                self.pause()
            }
            Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused => {
                self.refused.extend(self.open.drain(..count).map(|open| open.request));
                Next::AtOnce
            }
        }
    }

    /// Waits until the majority has what was executed, and answers.
    async fn confirm(&mut self, last_error: &mut Option<DriverError>) {
        self.place = None;
        let executed = std::mem::take(&mut self.executed);
        let Some(written_at) = self.written_at.take() else { return };
        match timeout_at(self.deadline, self.wire.majority.wait(written_at)).await {
            Ok(Known::Lasts) => {
                for (open, answer) in executed {
                    open.answer(answer);
                }
            }
            // The new primary has executed them, or does so now.
            Ok(Known::NewTerm) => self.open.extend(executed.into_iter().map(|(open, _)| open)),
            Err(_elapsed) => {
                for (open, answer) in executed {
                    open.answer(answer.unless_it_may_last(last_error.as_ref()));
                }
            }
        }
    }

    async fn send(&mut self, count: usize) -> Result<Document, DriverError> {
        let sent = || self.open.iter().take(count);
        let (concern, longest) = self.waits();
        let command = Command {
            kind: self.kind,
            collection: &self.namespace.coll,
            statements: sent().map(|open| open.request.statement.as_ref()).collect(),
            retry: Some(Retry {
                number: self.session.number,
                places: sent().map(|open| open.place).collect(),
            }),
            concern,
            longest,
        };
        let command = codec::encode(&command).map_err(|error| error_codes::unencodable(error.to_string()))?;
        let leaving = sent().map(|open| open.request.departure.clone()).collect();
        let database = self.wire.client.database(&self.namespace.db);
        let session = &mut self.session.session;
        database.run_raw_command(command).session(session).selection_criteria(leaves(leaving)).await
    }

    /// The write concern of the next command, and how long the server may work at it.
    fn waits(&self) -> (Document, Duration) {
        let majority = |time: Duration| doc! { "w": "majority", "wtimeout": millis(time) };
        let is_held = self.open.front().is_some_and(|open| open.is_held);
        let longest = if self.mode.apart && !is_held { LONGEST_APART } else { LONGEST };
        if self.mode.patient {
            (majority(MAJORITY_TIMEOUT), MAJORITY_TIMEOUT + LONGEST)
        } else if self.mode.asking {
            (doc! { "w": 1 }, longest)
        } else if self.mode.apart {
            // All of them wait together, once each has been executed.
            (majority(Duration::from_millis(1)), longest)
        } else {
            (majority(BRIEFLY), longest)
        }
    }

    /// Those of the first statements that left may have been executed.
    fn doubt(&mut self, count: usize) {
        for open in self.open.iter_mut().take(count) {
            open.in_doubt |= open.request.departure.has_left();
        }
    }

    fn pause(&mut self) -> Next {
        Next::Pause(self.pauses.next().unwrap_or(LONGEST_PAUSE))
    }

    /// No clean reply came in time.
    fn give_up(&mut self, error: Option<DriverError>) {
        let error = error.unwrap_or_else(|| error_codes::lost(no_answer()));
        for (open, answer) in std::mem::take(&mut self.executed) {
            open.answer(answer.unless_it_may_last(Some(&error)));
        }
        for open in std::mem::take(&mut self.open) {
            let answer = if open.in_doubt {
                WriteOutcome::Unknown(error.clone())
            } else {
                WriteOutcome::Failed(error_codes::not_sent(error.to_string()))
            };
            open.answer(answer);
        }
    }
}

impl WriteOutcome {
    /// This answer of a server whose majority was not heard of in time.
    fn unless_it_may_last(self, error: Option<&DriverError>) -> Self {
        match self {
            Self::Done => Self::Unknown(error.cloned().unwrap_or_else(|| error_codes::lost(no_answer()))),
            other => other,
        }
    }
}

/// Selects a server that takes writes, and notes that these statements leave for it. Before that they have certainly not
/// been sent, however long it takes to find a server.
fn leaves(statements: Vec<Departure>) -> SelectionCriteria {
    if statements.iter().all(Departure::has_left) {
        return primary();
    }
    SelectionCriteria::Predicate(Arc::new(move |server: &ServerInfo<'_>| {
        takes_writes(server.server_type()) && statements.iter().all(Departure::leave)
    }))
}

fn takes_writes(server: ServerType) -> bool {
    matches!(
        server,
        ServerType::RsPrimary | ServerType::Mongos | ServerType::Standalone | ServerType::LoadBalancer
    )
}

/// Sends a statement by itself in a way that any server takes. It is not repeated, since that would not be safe.
pub(crate) async fn send_plain(wire: &Wire, request: &Request) -> WriteOutcome {
    let command = Command {
        kind: request.kind,
        collection: &request.namespace.coll,
        statements: vec![request.statement.as_ref()],
        retry: None,
        concern: doc! { "w": "majority", "wtimeout": millis(MAJORITY_TIMEOUT) },
        longest: MAJORITY_TIMEOUT + LONGEST,
    };
    let command = match codec::encode(&command) {
        Ok(command) => command,
        Err(error) => return WriteOutcome::Failed(error_codes::unencodable(error.to_string())),
    };
    let database = wire.client.database(&request.namespace.db);
    let criteria = leaves(vec![request.departure.clone()]);
    let reply = match database.run_raw_command(command).selection_criteria(criteria).await {
        Ok(reply) => Reply::read(&reply),
        Err(error) => Err(error),
    };
    match reply {
        Ok(Reply { concern: Some(concern), .. }) => WriteOutcome::Unknown(error_codes::lost(concern.text)),
        Ok(reply) => match reply.of(&[0]) {
            Said::Each(mut each) => each
                .pop()
                .flatten()
                .unwrap_or_else(|| WriteOutcome::Unknown(error_codes::lost("interrupted"))),
            Said::Some | Said::Nonsense => {
                WriteOutcome::Unknown(error_codes::lost("the reply does not add up"))
            }
        },
        Err(error) if error_codes::verdict(&error) == Verdict::Unknown => WriteOutcome::Unknown(error),
        Err(error) => WriteOutcome::Failed(error),
    }
}

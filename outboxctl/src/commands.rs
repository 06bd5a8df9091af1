//! Runs a command: calls the operation, and writes its result.

use std::str::FromStr;

use mongodb::{Namespace, bson::Uuid};
use outbox_operate::{
    Query,
    act::{Act, Force},
    advise::Times,
    doctor::Level,
    find::FoundMessage,
    list::{ListRequest, PlanNote, Scan},
    redact::Reveal,
};

use crate::{
    acting,
    args::{AdviseArgs, Args, Command, Format, General, ListArgs, MessageArgs},
    exit::{Exit, Failure},
    output, screens,
    settings::Setup,
};

/// The number of messages that a stream of a list draws at a time.
const CHUNK: usize = 200;

/// Runs the command, and reports a failure.
pub async fn run(args: Args) -> Exit {
    match Box::pin(run_command(&args)).await {
        Ok(exit) => exit,
        // The reader of a stream has what it wanted.
        Err(Failure::Output(error)) if error.is_closed() => Exit::Done,
        Err(failure) => {
            output::error(&failure.to_string());
            failure.exit()
        }
    }
}

async fn run_command(args: &Args) -> Result<Exit, Failure> {
    let general = &args.general;
    // A mistake in the command is reported even if no server can be reached.
    let setup = Setup::of(general);
    match &args.command {
        Command::Status => status(general, &setup.await?).await,
        Command::List(list_args) => {
            let query = query(&list_args.query)?;
            list(general, &setup.await?, list_args, query).await
        }
        Command::Show(message) => show(general, &setup.await?, message).await,
        Command::Explain(message) => explain(general, &setup.await?, message).await,
        Command::Document { collection, key } => {
            document(general, &setup.await?, namespace(collection)?, key).await
        }
        Command::Groups { query: text, limit } => {
            let query = query(text)?;
            groups(general, &setup.await?, &query, *limit).await
        }
        Command::Doctor => doctor(general, &setup.await?).await,
        Command::Advise(advise_args) => advise(general, &setup.await?, advise_args).await,
        Command::Replay(act) => acting::act(general, &setup.await?, Act::Replay, act, Force::Never).await,
        Command::Discard(act) => acting::act(general, &setup.await?, Act::Discard, act, Force::Never).await,
        Command::Kill(act) => acting::act(general, &setup.await?, Act::Kill, act, Force::Never).await,
        Command::Release { act, force } => {
            let force = if *force { Force::Accepted } else { Force::Never };
            acting::act(general, &setup.await?, Act::Release, act, force).await
        }
        Command::Restore(restore) => acting::restore(general, &setup.await?, restore).await,
        Command::Archive { limit } => acting::archive(general, &setup.await?, *limit).await,
        Command::Audit(audit) => acting::audit(general, &setup.await?, audit).await,
    }
}

async fn status(general: &General, setup: &Setup) -> Result<Exit, Failure> {
    let status = setup.operator.status().await?;
    output::write(general.output, &status, || screens::status::draw(&status, general.width))?;
    Ok(if status.left_out.is_empty() { Exit::Done } else { Exit::Partly })
}

async fn list(general: &General, setup: &Setup, args: &ListArgs, query: Query) -> Result<Exit, Failure> {
    let columns = screens::list::columns(&args.columns, general.width).map_err(Failure::Argument)?;
    let scan = if args.scan { Scan::Allowed } else { Scan::Never };
    if args.all {
        return list_all(general, setup, &columns, query, scan).await;
    }

    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let page = setup.operator.list(ListRequest { query, limit, after: args.after.clone(), scan }).await?;
    let now = setup.operator.now().await?;
    let draw = || screens::list::draw(&page.rows, &columns, now, general.width);
    match general.output {
        Format::Jsonl => output::write_each(general.output, &page.rows, draw)?,
        format => output::write(format, &page, draw)?,
    }
    notes(general, &page.plans);
    if let Some(token) = &page.next {
        output::note(&format!("There are more messages. Next page: --after {token}"));
    }
    Ok(if page.rows.is_empty() { Exit::NothingMatched } else { Exit::Done })
}

/// Writes all messages as they are read.
async fn list_all(
    general: &General,
    setup: &Setup,
    columns: &[screens::list::ListColumn],
    query: Query,
    scan: Scan,
) -> Result<Exit, Failure> {
    let mut lister = setup.operator.lister(query, None, scan).await?;
    let now = lister.now();
    let format = if general.output == Format::Json { Format::Jsonl } else { general.output };

    let mut is_empty = true;
    loop {
        let mut rows = Vec::new();
        while rows.len() < CHUNK {
            match lister.next().await? {
                Some(row) => rows.push(row),
                None => break,
            }
        }
        if rows.is_empty() {
            break;
        }
        is_empty = false;
        output::write_part(format, &rows, || screens::list::draw(&rows, columns, now, general.width))?;
    }
    notes(general, lister.plans());
    Ok(if is_empty { Exit::NothingMatched } else { Exit::Done })
}

fn notes(general: &General, plans: &[PlanNote]) {
    if general.output != Format::Table {
        return;
    }
    for plan in plans {
        output::note(&screens::list::plan(plan));
    }
}

async fn show(general: &General, setup: &Setup, args: &MessageArgs) -> Result<Exit, Failure> {
    let found = find(setup, args).await?;
    if setup.redaction.reveal() == Reveal::Everything {
        let author = acting::author(args.reason.as_deref(), args.by.as_deref())?;
        setup.operator.record_reveal(&found, author).await?;
    }
    let view = setup.operator.show(&found, &setup.redaction).await?.ok_or_else(gone)?;
    let now = setup.operator.now().await?;
    output::write(general.output, &view, || screens::message::draw(&view, now, general.width))?;
    Ok(Exit::Done)
}

async fn explain(general: &General, setup: &Setup, args: &MessageArgs) -> Result<Exit, Failure> {
    let found = find(setup, args).await?;
    let explanation = setup.operator.explain(&found).await?;
    output::write(general.output, &explanation, || screens::explain::draw(&explanation, general.width))?;
    Ok(Exit::Done)
}

async fn document(
    general: &General,
    setup: &Setup,
    namespace: Namespace,
    key: &str,
) -> Result<Exit, Failure> {
    let views = setup.operator.documents(namespace.clone(), key).await?;
    if views.is_empty() {
        return Err(Failure::NotFound(format!("{namespace} has no document with the _id {key}")));
    }
    let now = setup.operator.now().await?;
    let draw = || {
        let drawn = views.iter().map(|view| screens::document::draw(view, now, general.width));
        drawn.collect::<Vec<String>>().join("\n")
    };
    output::write_each(general.output, &views, draw)?;
    Ok(Exit::Done)
}

async fn groups(general: &General, setup: &Setup, query: &Query, limit: usize) -> Result<Exit, Failure> {
    let mut failures = setup.operator.groups(query).await?;
    let hidden = failures.groups.len().saturating_sub(limit);
    if general.output == Format::Table {
        failures.groups.truncate(limit);
    }

    let now = setup.operator.now().await?;
    output::write(general.output, &failures, || screens::groups::draw(&failures, now, general.width))?;
    if general.output == Format::Table && hidden > 0 {
        output::note(&format!("{hidden} more groups: raise --limit."));
    }
    Ok(if !failures.left_out.is_empty() {
        Exit::Partly
    } else if failures.groups.is_empty() {
        Exit::NothingMatched
    } else {
        Exit::Done
    })
}

async fn doctor(general: &General, setup: &Setup) -> Result<Exit, Failure> {
    let findings = setup.operator.doctor().await?;
    output::write_each(general.output, &findings, || screens::doctor::draw(&findings, general.width))?;
    let has_problem = findings.iter().any(|finding| finding.level == Level::Problem);
    Ok(if has_problem { Exit::Failed } else { Exit::Done })
}

async fn advise(general: &General, setup: &Setup, args: &AdviseArgs) -> Result<Exit, Failure> {
    let times = Times {
        delay: args.delay,
        inline_lease: args.inline_lease,
        claim_lease: args.claim_lease,
        sweep_interval: args.sweep_interval,
    };
    let advice = setup.operator.advise(args.sla, times).await?;
    output::write(general.output, &advice, || screens::advise::draw(&advice, general.width))?;
    Ok(if advice.cases.iter().all(|case| case.is_kept) { Exit::Done } else { Exit::Failed })
}

/// The one message that the arguments name.
async fn find(setup: &Setup, args: &MessageArgs) -> Result<FoundMessage, Failure> {
    let id = Uuid::parse_str(&args.id).map_err(|_| {
        Failure::Argument(format!(
            "{:?} is not a message's id; write all of the UUID, as `list` shows it",
            args.id
        ))
    })?;
    let within = query(&args.within)?;
    let scan = if args.scan { Scan::Allowed } else { Scan::Never };
    let mut found = setup.operator.find_message(id, &within, scan).await?;
    if found.len() > 1 {
        let documents: Vec<String> = found.iter().map(|found| found.document.to_string()).collect();
        return Err(Failure::Argument(format!(
            "several documents have message {id}: {}; add doc:… to choose one",
            documents.join(", ")
        )));
    }
    found.pop().ok_or_else(|| {
        Failure::NotFound(format!(
            "message {id} is in none of the searched outboxes: it was delivered or removed, or its collection is not \
             watched"
        ))
    })
}

fn gone() -> Failure {
    Failure::NotFound("the message can't be read".to_owned())
}

fn query(words: &[String]) -> Result<Query, Failure> {
    Ok(Query::from_str(&words.join(" ")).map_err(outbox_operate::OperateError::from)?)
}

fn namespace(text: &str) -> Result<Namespace, Failure> {
    match text.split_once('.') {
        Some((database, collection)) if !database.is_empty() && !collection.is_empty() => {
            Ok(Namespace::new(database, collection))
        }
        _ => Err(Failure::Argument(format!("{text:?} is not a collection; write database.collection"))),
    }
}

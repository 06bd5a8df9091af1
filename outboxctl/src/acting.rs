//! Runs the commands that change messages: preview first, execute on request.

use std::io::{self, IsTerminal, Write};

use mongodb::bson::{DateTime, Uuid};
use outbox_operate::{
    OperateError, Query,
    act::{Act, ActRequest, ActSum, Acted, AuditRequest, Author, Force},
    list::Scan,
    query::Moment,
};
use serde::Serialize;

use crate::{
    args::{ActArgs, AuditArgs, Format, General, RestoreArgs},
    exit::{Exit, Failure},
    output, screens,
    settings::Setup,
};

/// What an act has done.
#[derive(Serialize)]
struct Done {
    sum: ActSum,
    messages: Vec<Acted>,
}

/// Previews or executes an act.
///
/// # Errors
/// [`Failure`].
pub async fn act(
    general: &General,
    setup: &Setup,
    act: Act,
    args: &ActArgs,
    force: Force,
) -> Result<Exit, Failure> {
    let mut request = ActRequest::new(act, query_of(&args.messages)?);
    request.scan = if args.scan { Scan::Allowed } else { Scan::Never };
    request.ceiling = args.ceiling;
    request.expected = args.expect;
    request.force = force;

    if !args.execute {
        let preview = setup.operator.preview(&request).await?;
        let now = setup.operator.now().await?;
        output::write(general.output, &preview, || screens::act::preview(&preview, now, general.width))?;
        return Ok(if preview.messages == 0 { Exit::NothingMatched } else { Exit::Done });
    }

    let author = author(args.reason.as_deref(), args.by.as_deref())?;
    confirm(general, setup, args.confirm.as_deref())?;
    let mut messages = Vec::new();
    let sum = setup.operator.execute(&request, author, |acted| messages.push(acted.clone())).await?;
    finish(general, act, &Done { sum, messages })
}

/// Returns messages from the archive to their outboxes.
///
/// # Errors
/// [`Failure`].
pub async fn restore(general: &General, setup: &Setup, args: &RestoreArgs) -> Result<Exit, Failure> {
    let ids: Vec<Uuid> = args.ids.iter().map(|text| id_of(text)).collect::<Result<_, _>>()?;
    let author = author(args.reason.as_deref(), args.by.as_deref())?;
    confirm(general, setup, args.confirm.as_deref())?;
    let mut messages = Vec::new();
    let report = |acted: &Acted| messages.push(acted.clone());
    let sum = if args.force {
        setup.operator.restore_by_force(&ids, author, report).await?
    } else {
        setup.operator.restore(&ids, author, report).await?
    };
    finish(general, Act::Restore, &Done { sum, messages })
}

fn finish(general: &General, act: Act, done: &Done) -> Result<Exit, Failure> {
    let draw = || screens::act::done(act, &done.sum, &done.messages, general.width);
    match general.output {
        Format::Jsonl => output::write_each(general.output, &done.messages, draw)?,
        format => output::write(format, done, draw)?,
    }
    let sum = &done.sum;
    if let Some(error) = &sum.error {
        output::error(error);
        return Ok(if sum.done > 0 { Exit::Partly } else { Exit::Failed });
    }
    Ok(if sum.done == 0 && sum.changed == 0 && sum.failed == 0 {
        Exit::NothingMatched
    } else if sum.changed == 0 && sum.failed == 0 && sum.left == 0 {
        Exit::Done
    } else if sum.done == 0 && sum.failed > 0 {
        Exit::Failed
    } else {
        Exit::Partly
    })
}

/// Lists acts, or adds missing outcomes.
///
/// # Errors
/// [`Failure`].
pub async fn audit(general: &General, setup: &Setup, args: &AuditArgs) -> Result<Exit, Failure> {
    if args.settle {
        let settled = setup.operator.settle().await?;
        output::note(&format!("{settled} acts without an outcome were settled."));
    }
    let now = setup.operator.now().await?;
    let ids = |text: &Option<String>| text.as_deref().map(id_of).transpose();
    let request = AuditRequest {
        message: ids(&args.message)?,
        operation: ids(&args.operation)?,
        since: args.since.map(|since| Moment::Ago(since).at(now)),
        limit: i64::from(args.limit),
    };
    let records = setup.operator.audit(&request).await?;
    output::write_each(general.output, &records, || screens::audit::draw(&records, now, general.width))?;
    Ok(if records.is_empty() { Exit::NothingMatched } else { Exit::Done })
}

/// Lists the archive.
///
/// # Errors
/// [`Failure`].
pub async fn archive(general: &General, setup: &Setup, limit: u32) -> Result<Exit, Failure> {
    let archived = setup.operator.archived(i64::from(limit)).await?;
    let now: DateTime = setup.operator.now().await?;
    output::write_each(general.output, &archived, || screens::audit::archive(&archived, now, general.width))?;
    Ok(if archived.is_empty() { Exit::NothingMatched } else { Exit::Done })
}

/// The author of an act, who has to give a reason.
pub(crate) fn author(reason: Option<&str>, by: Option<&str>) -> Result<Author, Failure> {
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty());
    let reason = reason.ok_or_else(|| {
        Failure::Argument("give the reason with --reason; the audit trail keeps it".to_owned())
    })?;
    let by = by.map(str::trim).filter(|by| !by.is_empty());
    let by = by.ok_or_else(|| {
        Failure::Argument("name yourself with --by or the variable USER; the audit trail keeps it".to_owned())
    })?;
    Ok(Author {
        name: by.to_owned(),
        host: outbox_service::host_name(),
        tool: format!("outboxctl {}", env!("CARGO_PKG_VERSION")),
        reason: reason.to_owned(),
    })
}

/// On a production system, an operator types the name of the profile.
fn confirm(general: &General, setup: &Setup, given: Option<&str>) -> Result<(), Failure> {
    let Some(profile) = general.profile().filter(|_| setup.production) else { return Ok(()) };
    let typed = match given {
        Some(given) => given.to_owned(),
        None if io::stdin().is_terminal() => ask(profile),
        None => String::new(),
    };
    if typed.trim() == profile {
        return Ok(());
    }
    Err(Failure::Operation(OperateError::Forbidden(format!(
        "{profile} is a production system, so no message was changed; confirm with --confirm {profile}"
    ))))
}

fn ask(profile: &str) -> String {
    let mut typed = String::new();
    let mut err = io::stderr().lock();
    let _ = write!(err, "{profile} is a production system. Type its name to continue: ");
    let _ = err.flush();
    // Without an answer it is not confirmed.
    let _ = io::stdin().read_line(&mut typed);
    typed
}

/// The query of the arguments, which are ids or conditions.
fn query_of(words: &[String]) -> Result<Query, Failure> {
    let conditions: Vec<String> =
        words.iter().filter(|word| Uuid::parse_str(word.as_str()).is_err()).cloned().collect();
    let mut query: Query = conditions.join(" ").parse().map_err(OperateError::from)?;
    query.ids.extend(words.iter().filter_map(|word| Uuid::parse_str(word.as_str()).ok()));
    Ok(query)
}

fn id_of(text: &str) -> Result<Uuid, Failure> {
    Uuid::parse_str(text)
        .map_err(|_| Failure::Argument(format!("{text:?} is not an id; write all of the UUID")))
}

//! The command line: one flag for each key, `--help`, `--version`, and the `config` commands.

use std::ffi::{OsStr, OsString};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::ValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    key::{Key, Kind},
    problem::Problem,
    program::Program,
    sources::Given,
};
use crate::suggestion::did_you_mean;

/// The result of parsing the command line: settings, or a text to print.
pub(super) enum Parsed {
    Given(Given),
    /// `--help` or `--version`.
    Print(String),
}

/// What the program should do with its settings.
#[derive(Clone, Copy)]
pub(super) enum Task {
    Serve,
    Check,
    Sample,
    Schema,
}

const TASKS: [(&str, Task); 3] = [("check", Task::Check), ("sample", Task::Sample), ("schema", Task::Schema)];

/// Removes a command such as `config check` from the front of the arguments. Flags follow.
pub(super) fn task(args: &[OsString], given: &mut Given) -> (Task, Vec<OsString>) {
    if args.first().is_none_or(|word| word != "config") {
        return (Task::Serve, args.to_vec());
    }

    let named = args.get(1).and_then(|word| TASKS.iter().find(|(name, _)| word == name));
    if let Some((_, task)) = named {
        return (*task, args[2..].to_vec());
    }

    let sentence = "needs a command: write config check, config sample or config schema";
    given.problems.push(Problem::new("config", sentence));
    // The remaining arguments belonged to the unknown command.
    given.incomplete = true;
    let flags = args.iter().skip_while(|arg| !arg.to_string_lossy().starts_with('-'));
    (Task::Serve, flags.cloned().collect())
}

const RULES: &str = "Commands, which replace serving and are given before any flag:\n  \
    config check   Print the effective settings with the source of each; if there are problems, print them \
        all and exit with code 2\n  \
    config sample  Print a file with every setting, its default and its meaning\n  \
    config schema  Print the JSON Schema of the file\n\n\
    A flag overrides its environment variable, which overrides the file.\n\
    Durations carry their unit: 250ms, 15s, 1h. Lists are separated by commas; in the file they may be arrays.";

/// Parses the command line. An argument that clap refuses is reported and removed, and the
/// remaining arguments are parsed again, so that one mistake doesn't hide the next. Clap's own
/// messages are not used, because they quote arguments, which may contain a password.
pub(super) fn parse(program: &Program, keys: &[Key], args: &[OsString]) -> Parsed {
    let command = command(program, keys);
    let mut given = Given::default();
    let mut args = args.to_vec();

    loop {
        let error = match command.clone().try_get_matches_from(&args) {
            Ok(matches) => {
                for key in keys {
                    take(&matches, key, &mut given);
                }
                return Parsed::Given(given);
            }
            Err(error) => error,
        };

        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return Parsed::Print(error.render().to_string());
        }

        if !leave_out(&error, keys, &mut args, &mut given) {
            let sentence = format!("can't be read ({}); see --help", error.kind());
            given.problems.push(Problem::new("command line", sentence));
            given.incomplete = true;
            return Parsed::Given(given);
        }
    }
}

fn command(program: &Program, keys: &[Key]) -> Command {
    Command::new(program.name)
        .version(program.version)
        .about(program.about)
        .after_help(RULES)
        .no_binary_name(true)
        .next_line_help(true)
        .override_usage(format!(
            "{0} [OPTIONS]\n       {0} config <check|sample|schema> [OPTIONS]",
            program.name
        ))
        .args(keys.iter().map(flag))
}

fn flag(key: &Key) -> Arg {
    let arg = Arg::new(key.name())
        .long(key.long())
        .value_name(value_name(key.kind()))
        .value_parser(ValueParser::os_string())
        .allow_negative_numbers(true)
        .action(ArgAction::Append)
        .help(help(key));
    match key.kind() {
        Kind::Boolean => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg.num_args(1),
    }
}

fn value_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Uri(_) => "URI",
        Kind::Duration(_) => "DURATION",
        Kind::Integer(_) => "NUMBER",
        Kind::Boolean => "BOOL",
        Kind::Choice(_) => "NAME",
        Kind::Text(_) => "TEXT",
        Kind::List(_) => "TEXT,...",
        Kind::Namespaces => "DB.COLLECTION,...",
    }
}

/// The help text of a key. It names the environment variable, but never shows the variable's value.
fn help(key: &Key) -> String {
    let choices = match key.kind() {
        Kind::Choice(names) => format!(" [one of: {}]", names.join(", ")),
        _ => String::new(),
    };
    let default = match key.default() {
        None => " [required]".into(),
        Some("") => String::new(),
        Some(default) => format!(" [default: {default}]"),
    };
    let fallback = key.fallback_env().map(|variable| format!(", then {variable}")).unwrap_or_default();
    format!("{}\n[env: {}{fallback}]{choices}{default}", key.help(), key.env())
}

fn take(matches: &ArgMatches, key: &Key, given: &mut Given) {
    let Some(values) = matches.get_many::<OsString>(key.name()) else {
        return;
    };
    let texts: Option<Vec<&str>> = values.map(|value| value.to_str()).collect();
    match texts {
        None => given.refuse(key, key.flag(), "is not UTF-8; write it in UTF-8"),
        Some(texts) if texts.len() > 1 && !key.kind().is_list() => {
            given.refuse(key, key.flag(), format!("is given {} times; give it once", texts.len()));
        }
        Some(texts) => given.set(key, texts.join(",")),
    }
}

/// Reports the argument that clap refused and removes it from `args`; returns `false` if that is
/// impossible.
fn leave_out(error: &clap::Error, keys: &[Key], args: &mut Vec<OsString>, given: &mut Given) -> bool {
    let Some(ContextValue::String(refused)) = error.get(ContextKind::InvalidArg) else {
        return false;
    };
    match error.kind() {
        ErrorKind::UnknownArgument if refused.starts_with('-') => {
            given.problems.push(Problem::new(refused, unknown(refused, keys)));
            remove_flag(args, refused)
        }
        ErrorKind::UnknownArgument => {
            given.problems.push(Problem::new(
                "command line",
                "has an argument that follows no flag (not shown, it could hold a password); give every value \
                 right after its flag, in quotes if it contains spaces",
            ));
            remove(args, |args, at| args[at] == OsStr::new(refused), 1)
        }
        ErrorKind::InvalidValue | ErrorKind::NoEquals => {
            // For this kind of error, clap gives the flag together with its placeholder, as in
            // `--delay <DURATION>`.
            let spelled = refused.split([' ', '=', '[']).next().unwrap_or(refused);
            let Some(key) = keys.iter().find(|key| key.flag() == spelled) else {
                return false;
            };
            given.refuse(key, spelled, "has no value; give it one");
            remove(args, |args, at| args[at] == OsStr::new(spelled) && !has_value(args, at), 1)
        }
        _ => false,
    }
}

fn unknown(flag: &str, keys: &[Key]) -> String {
    let flags: Vec<String> = keys.iter().map(Key::flag).collect();
    let hint = did_you_mean(flag, flags.iter().map(String::as_str));
    format!("is not a flag of this program{hint}; correct or remove it; --help lists all flags")
}

/// Removes an unknown flag, together with the value that seems to belong to it.
fn remove_flag(args: &mut Vec<OsString>, flag: &str) -> bool {
    if remove(args, |args, at| is_joined(&args[at], flag), 1) {
        return true;
    }

    remove(args, |args, at| args[at] == OsStr::new(flag) && has_value(args, at), 2)
        || remove(args, |args, at| args[at] == OsStr::new(flag), 1)
}

/// Whether an argument is the flag joined with a value: `--flag=value`, `-fvalue`.
fn is_joined(argument: &OsStr, flag: &str) -> bool {
    let argument = argument.to_string_lossy();
    match argument.strip_prefix(flag) {
        Some(value) if flag.starts_with("--") => value.starts_with('='),
        Some(value) => !value.is_empty(),
        None => false,
    }
}

fn has_value(args: &[OsString], at: usize) -> bool {
    args.get(at + 1).is_some_and(|next| !next.to_string_lossy().starts_with('-'))
}

/// Removes `count` arguments at the first place where `found` is true.
fn remove(args: &mut Vec<OsString>, found: impl Fn(&[OsString], usize) -> bool, count: usize) -> bool {
    match (0..args.len()).find(|at| found(args, *at)) {
        Some(at) => args.drain(at..at + count).next().is_some(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::keys;

    const PROGRAM: Program = Program { name: "outbox-test", version: "1.2.3", about: "Tests." };

    fn table() -> Vec<Key> {
        vec![
            keys::mongodb_uri(),
            keys::watch(),
            keys::shutdown_grace(),
            Key::new("inline", Kind::Boolean, "Whether.").with_default("false"),
        ]
    }

    fn given(args: &[&str]) -> Given {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        match parse(&PROGRAM, &table(), &args) {
            Parsed::Given(given) => given,
            Parsed::Print(text) => panic!("printed {text}"),
        }
    }

    fn printed(args: &[&str]) -> String {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        match parse(&PROGRAM, &table(), &args) {
            Parsed::Given(given) => panic!("gave {:?}", given.texts),
            Parsed::Print(text) => text,
        }
    }

    #[test]
    fn a_flag_takes_its_value_either_way() {
        for args in [&["--shutdown-grace", "5s"][..], &["--shutdown-grace=5s"]] {
            assert_eq!(given(args).texts["shutdown_grace"].as_deref(), Some("5s"));
        }
    }

    #[test]
    fn only_a_list_flag_may_be_repeated() {
        let given = given(&["--watch", "a.b", "--watch=c.d", "--shutdown-grace=1s", "--shutdown-grace=2s"]);
        assert_eq!(given.texts["watch"].as_deref(), Some("a.b,c.d"));
        assert_eq!(given.problems, [Problem::new("--shutdown-grace", "is given 2 times; give it once")]);
    }

    #[test]
    fn a_bare_boolean_flag_means_true() {
        assert_eq!(given(&["--inline", "--watch=a.b"]).texts["inline"].as_deref(), Some("true"));
        assert_eq!(given(&["--inline=false"]).texts["inline"].as_deref(), Some("false"));
    }

    #[test]
    fn one_mistake_does_not_hide_the_next() {
        let given = given(&[
            "--shutdwn-grace",
            "5s",
            "-x",
            "stray",
            "--watch",
            "--inline",
            "left",
            "--nope=1",
            "-qz",
        ]);
        let problems: Vec<_> = given.problems.iter().map(ToString::to_string).collect();
        for (start, end) in [
            ("--shutdwn-grace: is not a flag of this program (did you mean --shutdown-grace?)", ""),
            ("-x: is not a flag", ""),
            ("-q: is not a flag", ""),
            ("--nope: is not a flag", ""),
            ("--watch: has no value", ""),
            ("command line: has an argument that follows no flag", "spaces"),
        ] {
            let found =
                problems.iter().filter(|problem| problem.starts_with(start) && problem.ends_with(end));
            assert_eq!(found.count(), 1, "{start} in {problems:#?}");
        }
        assert_eq!(problems.len(), 6, "{problems:#?}");
        assert_eq!(given.texts["inline"].as_deref(), Some("true"));
    }

    #[test]
    fn no_argument_is_quoted_that_could_hold_a_password() {
        let uri = "mongodb://u:hunter2@h";
        for args in [
            &[uri][..],
            &["--mongodb-url", uri],
            &["--mongodb-url=mongodb://u:hunter2@h"],
            &["-mhunter2"],
            &["--mongodb-uri", "mongodb://u:a", "hunter2@h"],
            &["--", uri],
            &["--mongodb-uri", uri, "--mongodb-uri", uri],
            &["--help=hunter2"],
            &["--version=hunter2"],
        ] {
            let problems = given(args).problems;
            assert!(!problems.is_empty(), "{args:?}");
            assert!(!format!("{problems:?}").contains("hunter2"), "{problems:?}");
        }
    }

    #[test]
    fn help_shows_each_flags_variable_default_and_meaning() {
        let help = printed(&["--help"]);
        for key in table() {
            for part in [key.flag(), key.env(), key.help().into()] {
                assert!(help.contains(&part), "{part} in {help}");
            }
        }
        assert!(help.contains("[default: 25s]") && help.contains("[required]"), "{help}");
    }

    #[test]
    fn version_shows_name_and_version() {
        assert_eq!(printed(&["--version"]).trim(), "outbox-test 1.2.3");
    }
}

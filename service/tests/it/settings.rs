//! Tests how settings become a value of a daemon's own type, or a list of all problems.

use std::{ffi::OsString, io, path::Path, time::Duration};

use document_outbox::amqp::TopologyMode;
use outbox_service::{
    Key, Kind, NamespacePattern, Problems, Program, Reader, Resolution, Resolved, Sources, Uri, keys,
    settings::resolve,
};
use serde_json::json;
use strum::VariantNames;

const PROGRAM: Program = Program { name: "outbox-test", version: "1.2.3", about: "Tests settings." };
const PASSWORD: &str = "hunter2";
const MONGODB: &str = "mongodb://app:hunter2@db:27017/?replicaSet=rs0&tlsCertificateKeyFilePassword=hunter2";
const RABBITMQ: &str = "amqp://guest:hunter2@rabbit:5672/%2f";

fn table() -> Vec<Key> {
    vec![
        keys::mongodb_uri(),
        keys::rabbitmq_uri(),
        keys::watch(),
        keys::unordered(),
        keys::state_database(),
        keys::topology(),
        keys::log_filter(),
        Key::new(
            "delay",
            Kind::Duration(Duration::from_secs(1)..=Duration::from_hours(24)),
            "How late the stream is read.",
        )
        .with_default("15s"),
        Key::new("inline_lease", Kind::Duration(Duration::ZERO..=Duration::from_hours(1)), "A lease.")
            .with_default("10s"),
        Key::new("max_attempts", Kind::Integer(1..=1000), "Attempts before a message is dead.")
            .with_default("10"),
        Key::new("inline", Kind::Boolean, "Whether.").with_default("false"),
        Key::new("tags", Kind::List(|_| Ok(())), "Tags.").with_default(""),
    ]
}

#[derive(Debug, PartialEq)]
struct Settings {
    mongodb: Uri,
    rabbitmq: Uri,
    watch: Vec<NamespacePattern>,
    unordered: Vec<NamespacePattern>,
    state_database: String,
    topology: TopologyMode,
    log_filter: String,
    delay: Duration,
    max_attempts: u32,
    inline: bool,
    tags: Vec<String>,
}

fn read(mut read: Reader<'_>) -> Result<Settings, Problems> {
    let (delay, lease) = (read.duration("delay"), read.duration("inline_lease"));
    if lease >= delay {
        read.problem(&["inline_lease", "delay"], "must be shorter than delay; shorten it");
    }
    let settings = Settings {
        mongodb: read.uri("mongodb_uri"),
        rabbitmq: read.uri("rabbitmq_uri"),
        watch: read.namespaces("watch"),
        unordered: read.namespaces("unordered"),
        state_database: read.string("state_database"),
        topology: read.choice("topology"),
        log_filter: read.string("log_filter"),
        delay,
        max_attempts: read.integer("max_attempts"),
        inline: read.boolean("inline"),
        tags: read.strings("tags"),
    };
    read.finish(settings)
}

fn no_file(_: &Path) -> io::Result<String> {
    Err(io::ErrorKind::NotFound.into())
}

fn sources(args: &[&str], env: &[(&str, &str)]) -> Sources {
    Sources {
        args: args.iter().map(OsString::from).collect(),
        env: env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        read_file: no_file,
    }
}

fn resolved(sources: &Sources) -> Resolved {
    match resolve(&PROGRAM, &table(), sources) {
        Resolution::Run(resolved) => resolved,
        Resolution::Check(_) => panic!("only checks"),
        Resolution::Print(text) => panic!("printed {text}"),
    }
}

fn printed(args: &[&str]) -> String {
    match resolve(&PROGRAM, &table(), &sources(args, &[])) {
        Resolution::Print(text) => text,
        other => panic!("printed nothing: {other:?}"),
    }
}

fn settings(sources: &Sources) -> Result<Settings, Problems> {
    read(Reader::new(&resolved(sources)))
}

/// Returns sources with these arguments and variables, and with the required settings.
fn with_required(args: &[&str], env: &[(&str, &str)]) -> Sources {
    let required =
        [("OUTBOX_MONGODB_URI", MONGODB), ("OUTBOX_RABBITMQ_URI", RABBITMQ), ("OUTBOX_WATCH", "shop.*")];
    sources(args, &[&required[..], env].concat())
}

fn lines(problems: &Problems) -> Vec<String> {
    problems.0.iter().map(ToString::to_string).collect()
}

#[test]
fn the_simplest_run_needs_the_environment_alone() {
    let settings = settings(&with_required(&[], &[])).unwrap();
    assert_eq!(settings.mongodb.expose(), MONGODB);
    assert_eq!(settings.rabbitmq.expose(), RABBITMQ);
    assert_eq!(settings.watch, ["shop.*".parse().unwrap()]);
    assert_eq!(settings.unordered, []);
    assert_eq!(settings.state_database, "document_outbox");
    assert_eq!(settings.topology, TopologyMode::Declare);
    assert_eq!(settings.log_filter, "info");
    assert_eq!(settings.delay, Duration::from_secs(15));
    assert_eq!(settings.max_attempts, 10);
    assert!(!settings.inline);
    assert_eq!(settings.tags, Vec::<String>::new());
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let delay = |sources: Sources| settings(&sources).map(|settings| settings.delay.as_secs());
    let with_file = |mut sources: Sources| {
        sources.read_file = |_| Ok("delay = '20s'".into());
        sources
    };
    let config = ("OUTBOX_CONFIG", "outbox.toml");
    let env = ("OUTBOX_DELAY", "30s");
    assert_eq!(delay(with_required(&[], &[])), Ok(15));
    assert_eq!(delay(with_file(with_required(&[], &[config]))), Ok(20));
    assert_eq!(delay(with_file(with_required(&[], &[config, env]))), Ok(30));
    assert_eq!(delay(with_file(with_required(&["--delay", "40s"], &[config, env]))), Ok(40));
}

#[test]
fn the_flags_file_is_read_before_the_environments() {
    let mut sources = with_required(&["--config", "flag.toml"], &[("OUTBOX_CONFIG", "env.toml")]);
    sources.read_file = |path| {
        let name = path.display().to_string();
        Ok(format!("state_database = '{}'", name.trim_end_matches(".toml")))
    };
    assert_eq!(settings(&sources).unwrap().state_database, "flag");
}

#[test]
fn a_file_may_set_everything_in_its_own_types() {
    let mut sources = sources(&["--config=outbox.toml"], &[]);
    sources.read_file = |_| {
        Ok(format!(
            "mongodb_uri = '{MONGODB}'\nrabbitmq_uri = '{RABBITMQ}'\nwatch = ['shop.orders', 'shop.stock']\n\
             delay = '1h'\nmax_attempts = 1_000\ninline = true\ntopology = 'off'\ntags = ['a', 'b']\n"
        ))
    };
    let settings = settings(&sources).unwrap();
    assert_eq!(settings.watch.len(), 2);
    assert_eq!((settings.delay.as_secs(), settings.max_attempts, settings.inline), (3600, 1000, true));
    assert_eq!(
        (settings.topology, settings.tags.as_slice()),
        (TopologyMode::Off, &["a".into(), "b".into()][..])
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let mut sources = sources(
        &["--delay=15", "--dealy", "3s", "--config", "outbox.toml"],
        &[
            ("OUTBOX_MAX_ATTEMPTS", "0"),
            ("OUTBOX_WATCH", "shop,local.*"),
            ("OUTBOX_MONGODB_URI", "http://db"),
        ],
    );
    sources.read_file = |_| Ok("topolgy = 'off'\nstate_database = 'a.b'\ninline = 'perhaps'".into());
    let problems = lines(&settings(&sources).unwrap_err());
    for start in [
        "--dealy: is not a flag of this program (did you mean --delay?)",
        "outbox.toml:topolgy: is not a setting of this program (did you mean topology?)",
        "OUTBOX_MONGODB_URI: is not a valid URI",
        "rabbitmq_uri: is missing; set OUTBOX_RABBITMQ_URI in the environment, --rabbitmq-uri on the command line",
        "OUTBOX_WATCH: \"shop\" names no collection",
        "OUTBOX_WATCH: \"local.*\" has a database that is the server's own",
        "outbox.toml:state_database: \"a.b\" has a '.' in its name",
        "--delay: \"15\" has no unit; write it as in 250ms, 15s or 1h",
        "OUTBOX_MAX_ATTEMPTS: \"0\" is too small; the minimum is 1",
        "outbox.toml:inline: \"perhaps\" is neither true nor false; write one of them",
    ] {
        assert_eq!(
            problems.iter().filter(|line| line.starts_with(start)).count(),
            1,
            "{start}\n{problems:#?}"
        );
    }
    assert_eq!(problems.len(), 10, "{problems:#?}");
}

#[test]
fn contradicting_keys_are_reported_if_both_are_set() {
    let lease = ("OUTBOX_INLINE_LEASE", "20s");
    let related = settings(&with_required(&[], &[lease])).unwrap_err();
    assert_eq!(lines(&related), ["OUTBOX_INLINE_LEASE: must be shorter than delay; shorten it"]);
    let unjudged = settings(&with_required(&["--delay=soon"], &[lease])).unwrap_err();
    assert_eq!(unjudged.0.len(), 1);
    assert_eq!(unjudged.0[0].key, "--delay");
}

#[test]
fn an_unreadable_file_is_reported_alone() {
    let problems = settings(&sources(&["--config", "gone.toml", "--delay=15"], &[])).unwrap_err();
    let problems = lines(&problems);
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].starts_with("--config: \"gone.toml\" can't be read"), "{problems:#?}");
    assert!(problems[1].starts_with("--delay: "), "{problems:#?}");
}

#[test]
fn a_variable_resembling_a_key_is_a_warning() {
    let env = [("OUTBOX_DELYA", PASSWORD), ("OUTBOX_COLOUR", "red"), ("PATH", "/bin")];
    let resolved = resolved(&with_required(&[], &env));
    assert_eq!(
        resolved.warnings(),
        ["OUTBOX_DELYA is ignored: it is not a setting of this program (did you mean OUTBOX_DELAY?)"]
    );
    assert!(read(Reader::new(&resolved)).is_ok());
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let tagged = with_required(&[], &[("OUTBOX_DELAY", ""), ("OUTBOX_TAGS", "a,b")]);
    let found = settings(&tagged).unwrap();
    assert_eq!((found.delay.as_secs(), found.tags.len()), (15, 2));
    assert_eq!(settings(&with_required(&["--tags="], &[("OUTBOX_TAGS", "a,b")])).unwrap().tags.len(), 0);
    let refused = settings(&with_required(&["--delay="], &[])).unwrap_err();
    assert_eq!(lines(&refused), ["--delay: is empty; give it a duration"]);
}

#[test]
fn a_mounted_secret_may_end_in_a_newline() {
    let mut sources = with_required(&[], &[]);
    sources.env[0].1 = format!("{MONGODB}\n").into();
    assert_eq!(settings(&sources).unwrap().mongodb.expose(), MONGODB);
}

#[test]
fn rust_log_counts_without_a_filter() {
    let rust_log = ("RUST_LOG", "debug");
    let filter = |sources: Sources| settings(&sources).unwrap().log_filter;
    assert_eq!(filter(with_required(&[], &[rust_log])), "debug");
    assert_eq!(filter(with_required(&[], &[rust_log, ("OUTBOX_LOG_FILTER", "warn")])), "warn");
    let refused = settings(&with_required(&[], &[("RUST_LOG", "debg")])).unwrap_err();
    assert!(
        lines(&refused)[0].starts_with("RUST_LOG: \"debg\" has the unknown level debg (did you mean debug?)")
    );
}

#[cfg(unix)]
#[test]
fn what_is_not_utf8_is_refused_and_not_shown() {
    use std::os::unix::ffi::OsStringExt;
    let mut sources = with_required(&[], &[]);
    let broken = OsString::from_vec(b"hunter2\xff".to_vec());
    sources.env[0].1 = broken.clone();
    sources.args = vec!["--delay".into(), broken];
    let problems = lines(&settings(&sources).unwrap_err());
    assert_eq!(
        problems,
        ["--delay: is not UTF-8; write it in UTF-8", "OUTBOX_MONGODB_URI: is not UTF-8; write it in UTF-8"]
    );
}

#[test]
fn a_key_read_otherwise_is_a_defect() {
    let resolved = resolved(&with_required(&[], &[("OUTBOX_MAX_ATTEMPTS", "300")]));
    let mut reader = Reader::new(&resolved);
    let as_text = reader.string("delay");
    let too_narrow: u8 = reader.integer("max_attempts");
    let undeclared = reader.boolean("colour");
    assert_eq!((as_text.as_str(), too_narrow, undeclared), ("", 0, false));
    let problems = reader.finish(()).unwrap_err();
    assert_eq!(problems.0.len(), 3);
    assert!(lines(&problems).iter().all(|line| line.contains("a defect of the program")), "{problems}");
}

#[test]
fn the_defaults_of_the_shared_keys_are_valid() {
    let all = [
        keys::unordered(),
        keys::state_database(),
        keys::commands_exchange(),
        keys::commands_queue(),
        keys::messages_exchange(),
        keys::topology(),
        keys::shutdown_grace(),
        keys::log_format(),
        keys::log_filter(),
    ];
    let Resolution::Run(resolved) = resolve(&PROGRAM, &all, &sources(&[], &[])) else { panic!("printed") };
    assert_eq!(Reader::new(&resolved).finish(()), Ok(()));
    assert_eq!(TopologyMode::VARIANTS.len(), 3);
}

#[test]
fn the_summary_has_every_value_and_its_source() {
    let mut sources = with_required(&["--delay=1m", "--config=o.toml"], &[]);
    sources.read_file = |_| Ok("topology = 'verify'".into());
    assert_eq!(
        resolved(&sources).summary(),
        "config=o.toml (--config) mongodb_uri=mongodb://app:***@db:27017/?replicaSet=rs0&\
         tlsCertificateKeyFilePassword=*** (OUTBOX_MONGODB_URI) rabbitmq_uri=amqp://guest:***@rabbit:5672/%2f \
         (OUTBOX_RABBITMQ_URI) watch=shop.* (OUTBOX_WATCH) state_database=document_outbox topology=verify \
         (o.toml) log_filter=info delay=1m (--delay) inline_lease=10s max_attempts=10 inline=false"
    );
}

#[test]
fn patterns_are_shown_with_their_delays() {
    let resolved = resolved(&with_required(&["--watch", "shop.*, audit.log@5m"], &[]));
    assert!(resolved.summary().contains(" watch=shop.*,audit.log@5m (--watch) "), "{}", resolved.summary());
    assert!(
        resolved.effective().contains(r#"watch = ["shop.*", "audit.log@5m"]"#),
        "{}",
        resolved.effective()
    );
}

#[test]
fn a_password_appears_in_no_output() {
    let outputs = |sources: &Sources| {
        let resolved = resolved(sources);
        let reader = Reader::new(&resolved);
        let texts = format!(
            "{sources:?}\n{resolved:?}\n{}\n{reader:?}\n{:?}",
            [resolved.summary(), resolved.effective()].concat(),
            resolved.warnings()
        );
        match read(reader) {
            Ok(settings) => {
                format!("{texts}\n{settings:?}\n{}\n{}", settings.mongodb, settings.rabbitmq)
            }
            Err(problems) => format!("{texts}\n{problems}\n{problems:?}"),
        }
    };
    let swapped = [("OUTBOX_MONGODB_URI", RABBITMQ), ("OUTBOX_RABBITMQ_URI", MONGODB)];
    let misplaced: Vec<_> =
        ["WATCH", "DELAY", "MAX_ATTEMPTS", "INLINE", "STATE_DATABASE", "TOPOLOGY", "TAGS"]
            .map(|key| format!("OUTBOX_{key}"))
            .into_iter()
            .chain(["OUTBOX_LOG_FILTER", "OUTBOX_CONFIG", "OUTBOX_MONGODB_URL", "RUST_LOG"].map(String::from))
            .collect();
    let misplaced: Vec<_> = misplaced.iter().map(|key| (key.as_str(), MONGODB)).collect();
    let truncated =
        [("OUTBOX_MONGODB_URI", "mongodb://app:hunter2"), ("OUTBOX_RABBITMQ_URI", "guest:hunter2")];
    let mut in_file = sources(&["--config", "outbox.toml"], &[]);
    in_file.read_file =
        |_| Ok(format!("mongodb_uri = ['{MONGODB}']\nrabbitmq_url = '{RABBITMQ}'\nwatch = '{MONGODB}'"));
    let mut broken_file = in_file.clone();
    broken_file.read_file = |_| Ok(format!("mongodb_uri = '{MONGODB}"));
    for sources in [
        with_required(&[], &[]),
        sources(&["--mongodb-uri", MONGODB, "--rabbitmq-uri", RABBITMQ, "--watch=shop.*"], &[]),
        sources(
            &["--mongodb-url", MONGODB, RABBITMQ, "--delay", MONGODB, "--rabbitmq=amqp://u:hunter2@h"],
            &[],
        ),
        sources(&[], &swapped),
        sources(&[], &truncated),
        sources(&[], &misplaced),
        in_file,
        broken_file,
    ] {
        let text = outputs(&sources);
        assert!(!text.contains(PASSWORD), "{text}");
        for print in [&["--help"][..], &["--version"], &["config", "sample"], &["config", "schema"]] {
            let mut sources = sources.clone();
            sources.args = print.iter().map(OsString::from).collect();
            let Resolution::Print(text) = resolve(&PROGRAM, &table(), &sources) else { panic!("ran") };
            assert!(!text.contains(PASSWORD), "{text}");
        }
    }
}

#[test]
fn the_sample_works_with_and_without_its_defaults() {
    let sample = printed(&["config", "sample"]);
    let uncommented: Vec<_> = sample
        .lines()
        .map(|line| match line.split_once(" = ") {
            Some((name, _))
                if name.trim_start_matches("# ").chars().all(|c| c == '_' || c.is_ascii_lowercase()) =>
            {
                line.trim_start_matches("# ")
            }
            _ => line,
        })
        .collect();
    let defaults = uncommented.join("\n");
    for key in table() {
        assert!(sample.replace("\n# ", " ").contains(key.help()), "{sample}");
        assert!(defaults.lines().any(|line| line.starts_with(&format!("{} = ", key.name()))), "{defaults}");
    }
    assert!(sample.contains("# Takes a duration from 1s to 1day.\n# delay = \"15s\"\n"), "{sample}");
    assert!(sample.contains("# Takes a whole number from 1 to 1000.\n# max_attempts = 10\n"), "{sample}");
    assert!(sample.contains("# Takes one of declare, verify, off.\n# topology = \"declare\"\n"), "{sample}");
    for text in [sample, defaults] {
        *FILE.lock().unwrap() = text;
        let mut sources = sources(&["--config", "sample.toml"], &[]);
        sources.read_file = |_| Ok(FILE.lock().unwrap().clone());
        let found = settings(&sources).unwrap();
        assert_eq!((found.delay.as_secs(), found.max_attempts, found.watch.len()), (15, 10, 2));
    }
}

/// The contents of the settings file, which a test sets.
static FILE: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());

#[test]
fn the_schema_has_every_keys_bounds_and_default() {
    let schema: serde_json::Value = serde_json::from_str(&printed(&["config", "schema"])).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["additionalProperties"], false);
    let properties = schema["properties"].as_object().unwrap();
    assert_eq!(
        properties.keys().map(String::as_str).collect::<Vec<_>>(),
        table().iter().map(Key::name).collect::<Vec<_>>()
    );
    let shape = |name: &str| {
        let mut property = properties[name].clone();
        property.as_object_mut().unwrap().remove("description");
        property
    };
    assert_eq!(
        shape("max_attempts"),
        json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 10 })
    );
    assert_eq!(shape("topology"), json!({ "enum": ["declare", "verify", "off"], "default": "declare" }));
    assert_eq!(shape("inline"), json!({ "type": "boolean", "default": false }));
    assert_eq!(
        shape("mongodb_uri"),
        json!({ "type": "string", "pattern": "^(mongodb://|mongodb\\+srv://)" })
    );
    assert_eq!(shape("unordered")["default"], json!([]));
    assert_eq!(shape("delay")["default"], "15s");
}

#[test]
fn the_check_shows_sources_and_no_secret() {
    let mut sources = with_required(&["config", "check", "--delay=1m", "--config=o.toml"], &[]);
    sources.read_file =
        |_| Ok(format!("topology = 'verify'\nlog_filter = '[{{uri={MONGODB}}}]=info'\ntags = 'a,b'"));
    let Resolution::Check(resolved) = resolve(&PROGRAM, &table(), &sources) else { panic!("no check") };
    let effective = resolved.effective();
    let words: Vec<_> =
        effective.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "rabbitmq_uri = \"amqp://guest:***@rabbit:5672/%2f\" # OUTBOX_RABBITMQ_URI",
        "watch = [\"shop.*\"] # OUTBOX_WATCH",
        "topology = \"verify\" # o.toml",
        "log_filter = \"***\" # o.toml",
        "delay = \"1m\" # --delay",
        "max_attempts = 10 # default",
        "inline = false # default",
        "tags = [\"a\", \"b\"] # o.toml",
        "unordered = [] # default",
    ] {
        assert!(words.iter().any(|found| found == line), "{line} in {effective}");
    }
    assert!(!effective.contains(PASSWORD), "{effective}");
}

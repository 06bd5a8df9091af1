//! The process: its exit codes, its output for machines, and its secrets.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use document_outbox::store::indexes;
use mongodb::{
    Client, Database,
    bson::{DateTime, Document, Uuid, doc},
};
use serde_json::Value;

use crate::on_panic::OnPanic;

/// A database with dead messages, for the program.
struct Shop {
    uri: String,
    database: Database,
    dead: Uuid,
    _on_panic: OnPanic,
}

impl Shop {
    async fn new() -> Self {
        let uri = std::env::var("OUTBOX_MONGODB_URI").expect(r#"run `eval "$(scripts/services env)"`"#);
        let name = format!("t_{}", uuid::Uuid::now_v7().simple());
        let database = Client::with_uri_str(&uri).await.unwrap().database(&name);
        let orders = database.collection::<Document>("orders");
        orders.create_indexes(indexes()).await.unwrap();
        let dead = Uuid::new();
        for number in 0..5 {
            let id = if number == 0 { dead } else { Uuid::new() };
            let entry = doc! {
                "id": id, "type": "order.paid", "payload": { "email": "hunter2@b.example" },
                "dead_at": DateTime::from_millis(1_769_860_800_000 + number), "dead_reason": "permanent",
            };
            orders.insert_one(doc! { "_id": format!("o-{number}"), "outbox": [entry] }).await.unwrap();
        }
        let on_panic = OnPanic::drop_databases(uri.clone(), name);
        Self { uri, database, dead, _on_panic: on_panic }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let watch = format!("{}.*", self.database.name());
        let state = self.state().name().to_owned();
        let environment = [
            ("OUTBOX_MONGODB_URI", self.uri.as_str()),
            ("OUTBOX_WATCH", &watch),
            ("OUTBOX_STATE_DATABASE", &state),
            ("USER", "alice"),
        ];
        command(arguments, &environment)
    }

    fn state(&self) -> Database {
        self.database.client().database(&format!("{}_state", self.database.name()))
    }

    /// The number of dead messages.
    async fn dead(&self) -> u64 {
        let orders = self.database.collection::<Document>("orders");
        orders.count_documents(doc! { "outbox.dead_at": { "$exists": true } }).await.unwrap()
    }

    async fn drop(self) {
        self.state().drop().await.unwrap();
        self.database.drop().await.unwrap();
    }
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    command(arguments, environment).output().unwrap()
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxctl"));
    command.env_clear().args(arguments);
    for (name, value) in environment {
        command.env(name, value);
    }
    command
}

fn text(output: &Output) -> (String, String) {
    let read = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (read(&output.stdout), read(&output.stderr))
}

#[tokio::test]
async fn exit_codes_distinguish_the_outcomes() {
    let shop = Shop::new().await;
    let dead = shop.dead.to_string();
    let unknown = Uuid::new().to_string();
    for (arguments, code) in [
        (vec!["status"], 0),
        (vec!["list", "state:dead"], 0),
        (vec!["show", &dead], 0),
        (vec!["explain", &dead], 0),
        (vec!["doctor"], 1),
        (vec!["list", "sate:dead"], 2),
        (vec!["list", "--limit", "0"], 2),
        (vec!["archive", "--limit", "0"], 2),
        (vec!["no-such-command"], 2),
        (vec!["show", "junk"], 2),
        (vec!["list", "state:due"], 3),
        (vec!["show", &unknown], 3),
        (vec!["list", "state:unreadable"], 5),
        (vec!["--help"], 0),
    ] {
        let output = shop.run(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {:?}", text(&output));
    }

    let orders = shop.database.collection::<Document>("plain");
    orders.insert_one(doc! { "_id": 1 }).await.unwrap();
    let output = shop.run(&["status"]);
    assert_eq!(output.status.code(), Some(4), "a collection without index is left out: {:?}", text(&output));
    shop.drop().await;
}

#[tokio::test]
async fn machines_get_json_and_pages() {
    let shop = Shop::new().await;
    let page: Value =
        serde_json::from_slice(&shop.run(&["list", "-o", "json", "--limit", "2"]).stdout).unwrap();
    assert_eq!(page["rows"].as_array().unwrap().len(), 2);
    assert_eq!(page["rows"][0]["id"], shop.dead.to_string());
    assert_eq!(page["rows"][0]["dead_at"], "2026-01-31T12:00:00Z");
    let next = page["next"].as_str().unwrap();

    let rest = shop.run(&["list", "-o", "jsonl", "--after", next]);
    let (lines, notes) = text(&rest);
    assert_eq!(lines.lines().count(), 3, "{lines}");
    assert_eq!(notes, "", "machines get no notes");
    let all = shop.run(&["list", "-o", "jsonl", "--all"]);
    assert_eq!(text(&all).0.lines().count(), 5);
    assert_eq!(text(&shop.run(&["list", "-o", "none"])).0, "");

    let (table, notes) = text(&shop.run(&["list", "--limit", "2"]));
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(notes.contains("outbox_dead_at") && notes.contains("--after "), "{notes}");
    shop.drop().await;
}

#[tokio::test]
async fn payloads_are_hidden_unless_revealed() {
    let shop = Shop::new().await;
    let dead = shop.dead.to_string();
    let (hidden, _) = text(&shop.run(&["show", &dead]));
    assert!(hidden.contains("<string of 17 characters>") && !hidden.contains("hunter2"), "{hidden}");
    let silent = shop.run(&["show", &dead, "--reveal"]);
    assert_eq!(silent.status.code(), Some(2), "it needs a reason");
    assert!(!text(&silent).0.contains("hunter2"));
    let (revealed, _) = text(&shop.run(&["show", &dead, "--reveal", "--reason", "ticket 1"]));
    assert!(revealed.contains("hunter2@b.example"), "{revealed}");
    let (trail, _) = text(&shop.run(&["audit"]));
    assert!(trail.contains("reveal") && trail.contains("alice") && trail.contains("ticket 1"), "{trail}");

    let profiles = Profiles::new();
    let content = format!(
        "mongodb_uri = {:?}\nwatch = \"{}.*\"\nredact = [\"order.* /other\"]\n",
        shop.uri,
        shop.database.name()
    );
    profiles.write("test", &content);
    let directory = profiles.directory.to_str().unwrap();
    let shown = run(&["show", &dead, "--profile", "test", "--profiles", directory], &[]);
    let (shown, notes) = text(&shown);
    assert!(shown.contains("hunter2"), "the profile's rule hides another field: {shown} {notes}");
    shop.drop().await;
}

#[tokio::test]
async fn an_act_is_shown_before_it_is_executed() {
    let shop = Shop::new().await;
    let preview = shop.run(&["replay", "state:dead"]);
    let (shown, _) = text(&preview);
    assert_eq!(preview.status.code(), Some(0));
    assert!(shown.contains("takes 5 messages") && shown.contains("--execute --expect 5"), "{shown}");
    assert_eq!(shop.dead().await, 5, "a preview changes nothing");

    for (arguments, code) in [
        (vec!["replay", "state:dead", "--execute"], 2),
        (vec!["replay"], 2),
        (vec!["replay", "type:none"], 3),
        (vec!["replay", "state:dead", "--execute", "--reason", "x", "--expect", "4"], 5),
        (vec!["replay", "state:dead", "--execute", "--reason", "x", "--ceiling", "4"], 5),
        (vec!["release", "state:claimed"], 5),
        (vec!["restore", "--reason", "x", &Uuid::new().to_string()], 3),
    ] {
        let output = shop.run(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {:?}", text(&output));
    }
    assert_eq!(shop.dead().await, 5);

    let dead = shop.dead.to_string();
    let discard = shop.run(&["discard", &dead, "--execute", "--reason", "ticket 1"]);
    assert_eq!(discard.status.code(), Some(0), "{:?}", text(&discard));
    assert!(text(&shop.run(&["archive"])).0.contains(&dead));
    let restore = shop.run(&["restore", &dead, "--reason", "a mistake", "-o", "json"]);
    let restored: Value = serde_json::from_slice(&restore.stdout).unwrap();
    assert_eq!(restored["sum"]["done"], 1, "{restored}");
    let replay = shop.run(&["replay", "state:dead", "--execute", "--reason", "ticket 1", "-o", "jsonl"]);
    let (lines, _) = text(&replay);
    assert_eq!(lines.lines().count(), 5);
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["outcome"]["result"], "done", "{first}");
    assert_eq!(shop.dead().await, 0);

    let (trail, _) = text(&shop.run(&["audit", "--message", &dead, "-o", "jsonl"]));
    let acts: Vec<String> = trail
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["act"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(acts, ["replay", "restore", "discard"]);
    shop.drop().await;
}

#[tokio::test]
async fn production_asks_for_the_profiles_name() {
    let shop = Shop::new().await;
    let profiles = Profiles::new();
    let name = shop.database.name();
    let content = format!(
        "mongodb_uri = {:?}\nwatch = \"{name}.*\"\nstate_database = \"{name}_state\"\nproduction = true\n",
        shop.uri
    );
    profiles.write("live", &content);
    let directory = profiles.directory.to_str().unwrap();
    let execute = |confirm: &[&str]| {
        let fixed = ["replay", "state:dead", "--execute", "--reason", "x", "--by", "alice"];
        let profile = ["--profile", "live", "--profiles", directory];
        run(&[&fixed[..], &profile[..], confirm].concat(), &[])
    };
    for confirm in [&[][..], &["--confirm", "test"][..]] {
        let refused = execute(confirm);
        assert_eq!(refused.status.code(), Some(5));
        assert!(text(&refused).1.contains("--confirm live"), "{:?}", text(&refused));
        assert_eq!(shop.dead().await, 5);
    }
    assert_eq!(execute(&["--confirm", "live"]).status.code(), Some(0));
    assert_eq!(shop.dead().await, 0);
    shop.drop().await;
}

/// Scripts such as `outboxctl … | head -1` see what became of the messages.
#[tokio::test]
async fn a_closed_pipe_does_not_hide_a_failure() {
    let shop = Shop::new().await;
    let validator = doc! { "outbox.replayed_at": { "$exists": false } };
    shop.database.run_command(doc! { "collMod": "orders", "validator": validator }).await.unwrap();
    for format in ["table", "json", "jsonl"] {
        let arguments = ["replay", "state:dead", "--execute", "--reason", "x", "-o", format];
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = shop.command(&arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{format}: {:?}", text(&output));
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = shop.command(&["list", "-o", "json"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output).1.as_str()), (Some(0), ""), "a list has ended well");
    shop.drop().await;
}

#[tokio::test]
async fn an_act_that_ends_early_reports_its_part() {
    let shop = Shop::new().await;
    let validator = doc! { "validator": { "kind": { "$ne": "outcome" } } };
    shop.state().create_collection("audit").await.unwrap();
    let command = doc! { "collMod": "audit" }.into_iter().chain(validator).collect::<Document>();
    shop.state().run_command(command).await.unwrap();
    let output = shop.run(&["replay", "state:dead", "--execute", "--reason", "x"]);
    let (shown, error) = text(&output);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(shown.contains("5 done") && error.contains("audit trail"), "{shown} {error}");
    assert_eq!(shop.dead().await, 0);
    shop.drop().await;
}

#[tokio::test]
async fn a_second_restore_needs_force() {
    let shop = Shop::new().await;
    let dead = shop.dead.to_string();
    let restore =
        |more: &[&str]| shop.run(&[&["restore", &dead, "--reason", "x", "--width", "400"], more].concat());
    assert_eq!(shop.run(&["discard", &dead, "--execute", "--reason", "x"]).status.code(), Some(0));
    assert_eq!(restore(&[]).status.code(), Some(0));
    assert_eq!(shop.run(&["replay", &dead, "--execute", "--reason", "x"]).status.code(), Some(0));
    let delivered = doc! { "$pull": { "outbox": { "id": shop.dead } } };
    let orders = shop.database.collection::<Document>("orders");
    orders.update_one(doc! { "_id": "o-0" }, delivered).await.unwrap();

    let again = restore(&[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).0.contains("--force"), "{:?}", text(&again));
    assert!(text(&shop.run(&["archive", "--width", "400"])).0.contains("changed after its discard"));
    assert_eq!(restore(&["--force"]).status.code(), Some(0));
    shop.drop().await;
}

/// A directory of profiles that is removed at the end.
struct Profiles {
    directory: PathBuf,
}

impl Profiles {
    fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("outboxctl-{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.directory.join(format!("{name}.toml")), content).unwrap();
    }
}

impl Drop for Profiles {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_profile_does_not_mix_with_the_environment() {
    let profiles = Profiles::new();
    profiles
        .write("broken", "mongodb_uri = \"mongodb://u:hunter2@localhost:1/?nonsense=1\"\nredact = \"x\"\n");
    let directory = profiles.directory.to_str().unwrap();
    let output = run(
        &["status", "--profile", "broken", "--profiles", directory],
        &[("OUTBOX_WATCH", "shop.*"), ("OUTBOX_MONGODB_URI", "mongodb://localhost:1")],
    );
    let (_, error) = text(&output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    for part in ["watch: is missing", "broken.toml:redact: \"x\" needs TYPES", "broken.toml:mongodb_uri"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("hunter2"), "{error}");

    let escaped = run(&["status", "--profile", "../x", "--profiles", directory], &[]);
    assert_eq!(escaped.status.code(), Some(2));
    assert!(text(&escaped).1.contains("letters, digits"), "{:?}", text(&escaped));
}

#[tokio::test]
async fn empty_variables_count_as_not_set() {
    let shop = Shop::new().await;
    let watch = format!("{}.*", shop.database.name());
    let settings = [("OUTBOX_MONGODB_URI", shop.uri.as_str()), ("OUTBOX_WATCH", &watch)];
    for (name, value) in [("COLUMNS", ""), ("COLUMNS", "0"), ("OUTBOXCTL_PROFILE", "")] {
        let output = run(&["list"], &[&settings[..], &[(name, value)]].concat());
        assert_eq!(output.status.code(), Some(0), "{name}={value}: {:?}", text(&output));
    }
    shop.drop().await;
}

#[test]
fn an_unreachable_server_is_an_error_without_secrets() {
    let uri = "mongodb://user:hunter2@127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=200";
    let output = run(&["status"], &[("OUTBOX_MONGODB_URI", uri), ("OUTBOX_WATCH", "shop.*")]);
    let (shown, error) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(shown.is_empty() && !error.contains("hunter2"), "{error}");
}

//! Tests the README's program as a reader would build it, as a crate outside the workspace that contains
//! exactly the README's lines. The program prints the output that the README shows.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use mongodb::{
    Client,
    bson::{Document, doc, oid::ObjectId},
};
use tokio::{process::Command, time::timeout};

use crate::support::uri;

/// The time limit. The test may have to compile the MongoDB driver again, with the README's features.
const COMPILES_WITHIN: Duration = Duration::from_mins(14);

/// Returns the README's first code block in this language.
fn block(language: &str) -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let start = format!("```{language}\n");
    let (_, rest) =
        readme.split_once(&start).unwrap_or_else(|| panic!("the README has a block of {language}"));
    rest.split_once("```").unwrap().0.to_owned()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Creates a crate in cargo's folder for tests. The crate is built into the common target folder.
fn make_crate() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    fs::create_dir_all(folder.join("src")).unwrap();
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let profiles =
        workspace.split_once("[profile.dev]").unwrap().1.split_once("[profile.release]").unwrap().0;
    let root = root().display();
    let manifest = format!(
        "[package]\nname = \"readme\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n{}\n[workspace]\n\n\
         [patch.crates-io]\ndocument-outbox = {{ path = \"{root}\" }}\n\n\
         [profile.dev]{profiles}",
        block("toml"),
    );
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("src/main.rs"), block("rust")).unwrap();
    // The copied lock file selects the versions that are already downloaded, so that no network is needed.
    fs::copy(format!("{root}/Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    folder
}

#[tokio::test]
async fn a_crate_of_the_readmes_lines_prints_what_it_says() {
    let said = block("text");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let program = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline"])
        .current_dir(make_crate())
        .env("CARGO_TARGET_DIR", target)
        .env("OUTBOX_MONGODB_URI", uri("OUTBOX_MONGODB_URI"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(COMPILES_WITHIN, program).await.expect("it compiles and ends").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");

    // The printed id differs in each run.
    let printed = String::from_utf8(output.stdout).unwrap();
    let (sentence, id) = printed.trim_end().rsplit_once(' ').unwrap();
    let id = ObjectId::parse_str(id).unwrap();
    assert_eq!(said.trim_end().rsplit_once(' ').unwrap().0, sentence, "{printed}");

    let client = Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
    let orders = client.database("shop").collection::<Document>("orders");
    let order = orders.find_one_and_delete(doc! { "_id": id }).await.unwrap().expect("the order was saved");
    assert!(order.get_array("outbox").unwrap().is_empty(), "{order}");
}

#[test]
fn the_program_is_whole_before_line_60_and_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let program = block("rust");
    assert!(program.lines().count() <= 30, "{} lines", program.lines().count());
    let (before, _) = readme.split_once(&program).unwrap();
    assert!(before.lines().count() + program.lines().count() < 60);

    let example = fs::read_to_string(root().join("examples/quickstart.rs")).unwrap();
    let (header, code) = example.split_once("\n\n").unwrap();
    assert!(header.starts_with("//! "));
    assert_eq!(code, program, "copy the README's program from examples/quickstart.rs");
}

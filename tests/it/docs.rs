//! Tests the documentation. Its code must equal the examples, its links must have targets, and the tests that it names
//! must exist.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

#[test]
fn relative_links_lead_to_files_and_headings_that_exist() {
    let pages: HashMap<PathBuf, String> =
        pages().into_iter().map(|page| (page.clone(), read(&page))).collect();
    let mut broken = Vec::new();
    for (page, text) in &pages {
        for target in links(text) {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            let there = file.canonicalize().is_ok_and(|file| {
                anchor.is_empty() || pages.get(&file).is_some_and(|text| anchors(text).contains(anchor))
            });
            if !there {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_summary_of_the_book_has_every_page() {
    let docs = root().join("docs");
    let mut listed: Vec<PathBuf> =
        links(&read(&docs.join("SUMMARY.md"))).into_iter().map(|link| docs.join(link)).collect();
    listed.sort();

    let mut pages = files(&docs, "md");
    pages.retain(|page| !page.ends_with("SUMMARY.md"));
    pages.sort();

    assert_eq!(listed, pages, "docs/SUMMARY.md lists each page of docs/ once");
}

/// Returns the sources of all published crates and of the proofs, including tests.
fn sources() -> String {
    ["src", "tests", "derive", "rescuer", "dispatcher", "service", "operate", "outboxctl", "proof"]
        .iter()
        .flat_map(|folder| files(&root().join(folder), "rs"))
        .map(|file| read(&file))
        .collect()
}

/// Log messages of another crate, which this project forwards.
const OF_OTHERS: [&str; 2] = ["OTLP export exhausted retries …", "BatchSpanProcessor.ExportError"];

#[test]
fn the_log_lines_to_alert_on_exist() {
    let guide = read(&root().join("docs/operations.md"));
    let table = guide.split("\n## ").find(|section| section.starts_with("Log lines to alert on")).unwrap();
    let rows = table.lines().filter(|row| row.starts_with("| `"));
    let lines: Vec<&str> = rows
        .filter_map(|row| row.split(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|line| !OF_OTHERS.contains(line))
        .collect();
    assert!(lines.len() > 20, "{lines:?}");

    // Joins texts that continue on the next source line.
    let sources = sources().replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" ");
    let is_logged = |line: &&str| {
        let written = line.replace("outbox-rescuer", "{name}").replace("outbox-dispatcher", "{name}");
        written.split('…').all(|part| sources.contains(part.trim()))
    };
    let missing: Vec<_> = lines.into_iter().filter(|line| !is_logged(line)).collect();
    assert!(missing.is_empty(), "docs/operations.md names lines that no program writes: {missing:#?}");
}

#[test]
fn the_tests_that_show_a_promise_exist() {
    let guarantees = read(&root().join("docs/guarantees.md"));
    let named: BTreeSet<&str> =
        guarantees.split('`').filter(|word| word.matches('_').count() > 4 && is_lower_snake(word)).collect();
    assert!(named.len() > 20, "promises name their tests: {named:?}");
    assert_all_exist(named);
}

#[test]
fn every_threat_names_tests_that_exist() {
    let page = read(&root().join("docs/security.md"));
    let threats = page.split("\n## ").find(|section| section.starts_with("Threats")).unwrap();
    let rows: Vec<&str> = threats.lines().filter(|row| row.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 10, "{rows:#?}");

    let mut named = BTreeSet::new();
    for row in rows {
        let tests = row.split(" | ").last().unwrap();
        let tests: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "a threat without a test: {row}");
        named.extend(tests);
    }
    assert_all_exist(named);
}

fn assert_all_exist(tests: BTreeSet<&str>) {
    let sources = sources();
    let missing: Vec<_> =
        tests.into_iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_map_names_every_folder_and_no_other() {
    let map = read(&root().join("ARCHITECTURE.md"));
    let map = map.split("\n## ").find(|part| part.starts_with("The map")).unwrap();
    let rows = map.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let named: BTreeSet<String> = rows.map(str::to_owned).collect();

    let sources =
        ["src", "derive/src", "rescuer/src", "dispatcher/src", "operate/src", "outboxctl/src", "service/src"];
    let files = sources.iter().flat_map(|folder| files(&root().join(folder), "rs"));
    let folders = files.map(|file| {
        let folder = file.parent().unwrap().strip_prefix(root()).unwrap();
        format!("{}/", folder.display())
    });
    let mut there: BTreeSet<String> = folders.collect();
    there.remove("src/");

    assert_eq!(named, there, "the map's rows, and the folders with source files");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns every page at the root and under `docs`.
fn pages() -> Vec<PathBuf> {
    let at_root = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let at_root = at_root.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    at_root.chain(files(&root().join("docs"), "md")).collect()
}

/// Returns the files with this extension under a folder. A folder that doesn't exist has no files.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let nested = entries.map(|path| match path.is_dir() {
        true => files(&path, extension),
        false => vec![path],
    });
    let is_wanted = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    nested.flatten().filter(is_wanted).collect()
}

/// Returns the text outside fenced code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

fn links(text: &str) -> Vec<String> {
    let targets = prose(text).flat_map(|line| line.split("](").skip(1));
    let targets = targets.filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// Converts headings to link anchors: lower case, without punctuation, with hyphens for spaces.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let slug = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

fn is_lower_snake(word: &str) -> bool {
    word.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
}

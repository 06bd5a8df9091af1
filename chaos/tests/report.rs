//! Tests the table of runs that the command line prints.

use std::process::Command;

/// Returns the line for a run, as `storm --resume` appends it.
fn line(seed: u64, is_good: bool) -> String {
    format!(
        r#"{{"seed":{seed},"commit":"c0ffee","good":{is_good},"saves":10,"outcomes":{{}},"committed":12,"delivered":12,"duplicates":{{"claim":2}},"lost":0,"phantoms":0,"misreported":0,"order_violations":0,"stuck":0,"died":0,"answerable":10,"indeterminate":0,"healed_in":1.0,"drained_in":{seed}.0,"storm":15.0,"in_force":10.0,"took":30.0,"problems":[],"timeline":[{{"fault":"SIGKILL at random","target":"ordered","from":1.0,"until":2.0,"took":true,"evidence":""}}]}}"#
    )
}

#[test]
fn the_report_sums_up_every_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("runs.jsonl");
    std::fs::write(&file, format!("{}\n{}\n{{\"seed\":3", line(1, true), line(2, false))).unwrap();

    let output = Command::new(env!("CARGO_BIN_EXE_outbox-chaos")).arg("report").arg(&file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();

    for row in [
        "| runs | 2, of which bad: 1 |",
        "| seeds of bad runs | 2 |",
        "| messages committed | 24 |",
        "| (b) the claim ran out while its holder still worked | 4 |",
        "| SIGKILL at random | 2 | 2 | 2 | 1 |",
    ] {
        assert!(text.contains(row), "{row} is not in\n{text}");
    }
}

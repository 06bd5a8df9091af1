//! Tests the checks of the setup.

use std::{collections::BTreeSet, fs, path::Path};

use mongodb::{
    IndexModel,
    bson::{Timestamp, doc},
    options::IndexOptions,
};
use outbox_operate::doctor::{Check, Finding, Level};

use crate::scene::{LONG, Scene, entry};

fn problems(findings: &[Finding]) -> Vec<Check> {
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem);
    problems.map(|finding| finding.check).collect()
}

fn headings() -> BTreeSet<String> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let guide = fs::read_to_string(guide).unwrap();
    guide
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' '))
        .map(str::to_owned)
        .collect()
}

async fn with_a_working_rescuer(scene: &Scene) {
    let seconds = u32::try_from(scene.now.timestamp_millis() / 1_000).unwrap();
    let position = doc! { "_id": "default", "cluster_time": Timestamp { time: seconds, increment: 1 }, "updated_at": scene.now };
    scene.state().collection("positions").insert_one(position).await.unwrap();
    let lease =
        doc! { "_id": { "stream": "default" }, "kind": "stream", "owner": "host/1", "until": scene.at(60) };
    scene.state().collection("leases").insert_one(lease).await.unwrap();
}

#[test]
fn every_runbook_of_a_check_exists() {
    let headings = headings();
    for check in Check::all() {
        assert!(headings.contains(check.runbook()), "{:?}", check.runbook());
    }
}

#[tokio::test]
async fn a_sound_setup_has_no_problem() {
    let scene = Scene::new().await;
    with_a_working_rescuer(&scene).await;
    let findings = scene.operator.doctor().await.unwrap();
    assert_eq!(problems(&findings), [], "{findings:#?}");
    scene.drop().await;
}

#[tokio::test]
async fn each_flaw_is_found_with_its_runbook() {
    let scene = Scene::without_indexes().await;
    let ttl = IndexOptions::builder().expire_after(LONG).build();
    let ttl = IndexModel::builder().keys(doc! { "at": 1 }).options(ttl).build();
    scene.orders().create_index(ttl).await.unwrap();
    scene.database.run_command(doc! { "create": "capped", "capped": true, "size": 4096 }).await.unwrap();
    scene.database.run_command(doc! { "create": "view", "viewOn": "orders", "pipeline": [] }).await.unwrap();
    let lease =
        doc! { "_id": { "stream": "default" }, "kind": "stream", "owner": "host/1", "until": scene.at(-5) };
    scene.state().collection("leases").insert_one(lease).await.unwrap();
    scene.state().collection("leases").insert_one(doc! { "_id": 1, "kind": "oversized" }).await.unwrap();

    // An indexed collection with a dead and a late message.
    let indexed = scene.database.collection("indexed");
    indexed.create_indexes(document_outbox::store::indexes()).await.unwrap();
    let late = entry("a", doc! { "available_at": scene.at(-30) });
    indexed.insert_one(doc! { "_id": 1, "outbox": [scene.dead("permanent", "no"), late] }).await.unwrap();

    let findings = scene.operator.doctor().await.unwrap();
    let found: Vec<String> = findings
        .iter()
        .filter(|finding| finding.level != Level::Fine)
        .map(|finding| finding.sentence.clone())
        .collect();
    let text = found.join("\n");
    for hint in [
        "orders lacks the index outbox_available_at and outbox_dead_at",
        "The index at_1 of",
        "capped is capped",
        "view is a view",
        "No rescuer owns the stream default",
        "The stream default has no position",
        "1 documents have no room",
        "indexed has dead messages",
        "indexed has messages that have been due for more than 5m00s",
    ] {
        assert!(text.contains(hint), "{hint}: {text}");
    }

    let headings = headings();
    for finding in findings {
        assert_eq!(finding.runbook.is_none(), finding.level == Level::Fine, "{finding:?}");
        assert!(finding.runbook.is_none_or(|runbook| headings.contains(runbook)), "{finding:?}");
    }
    scene.drop().await;
}

#[tokio::test]
async fn a_pattern_without_collections_is_reported() {
    let scene = Scene::new().await;
    let pattern = format!("{}.order", scene.database.name());
    let scene = scene.with(|settings| settings.watch.push(pattern.parse().unwrap()));
    let findings = scene.operator.doctor().await.unwrap();
    let unmatched = format!("The pattern {pattern} matches no collection.");
    assert!(findings.iter().any(|finding| finding.sentence == unmatched), "{findings:#?}");
    scene.drop().await;
}

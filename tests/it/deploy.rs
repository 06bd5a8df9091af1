//! Tests that the files of deploy/ and docker-compose.yml agree with each other, with the services and with
//! the documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use serde_json::Value;

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn items(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn duration(text: &str) -> u64 {
    text.strip_suffix('s').unwrap().parse().unwrap()
}

/// Returns the metrics in docs/metrics.md, each with the rest of its row: kind, labels and label values.
fn contract() -> BTreeMap<String, String> {
    let table = read("docs/metrics.md");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `outbox_"));
    let series = rows.map(|row| {
        let (name, rest) = row.split_once('`').unwrap();
        (format!("outbox_{name}"), rest.to_owned())
    });
    series.collect()
}

/// Returns every word in a text that has the form of a metric name.
fn spelled_like_series(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("outbox_")).map(str::to_owned).collect()
}

/// Whether `word` is the name of a metric, or of a part of a histogram.
fn is_series(word: &str, contract: &BTreeMap<String, String>) -> bool {
    let of_histogram = |suffix| {
        let base = word.strip_suffix(suffix)?;
        contract.get(base).filter(|row| row.contains("| histogram |"))
    };
    contract.contains_key(word)
        || ["_bucket", "_sum", "_count"].into_iter().any(|suffix| of_histogram(suffix).is_some())
}

fn rules() -> Vec<Value> {
    let [alerts] = &yaml("deploy/prometheus/alerts.yaml")[..] else { panic!("one document") };
    items(&alerts["groups"]).iter().flat_map(|group| items(&group["rules"]).to_vec()).collect()
}

/// Returns the panels and their queries.
fn dashboard() -> (Vec<Value>, Vec<String>) {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    let panels = items(&dashboard["panels"]).to_vec();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let asked = targets.map(|target| text(&target["expr"]).to_owned()).collect();
    (panels, asked)
}

fn expressions() -> Vec<String> {
    let rules = rules();
    rules.iter().map(|rule| text(&rule["expr"]).to_owned()).chain(dashboard().1).collect()
}

#[test]
fn alerts_dashboard_and_runbooks_name_only_documented_series() {
    let contract = contract();
    assert!(contract.len() > 30, "{contract:?}");
    let of_expressions: BTreeSet<_> =
        expressions().iter().flat_map(|asked| spelled_like_series(asked)).collect();
    let unknown: Vec<_> = of_expressions.iter().filter(|word| !is_series(word, &contract)).collect();
    assert!(of_expressions.len() > 25 && unknown.is_empty(), "{unknown:?} of {of_expressions:?}");
    // These words are names of indexes and of a collection, not of metrics.
    let no_series = ["outbox_available_at", "outbox_dead_at", "outbox_kept"];
    let of_runbooks = spelled_like_series(&read("docs/operations.md"));
    let unknown: Vec<_> = of_runbooks
        .iter()
        .filter(|word| !is_series(word, &contract) && !no_series.contains(&word.as_str()))
        .collect();
    assert!(of_runbooks.len() > 15 && unknown.is_empty(), "{unknown:?} of {of_runbooks:?}");
}

#[test]
fn alerts_and_dashboard_use_only_existing_labels() {
    let contract = contract();
    for asked in expressions() {
        // If a metric is followed by {label="value"}, label and value must be in the metric's row.
        for (before, after) in asked.match_indices('{').map(|(at, _)| asked.split_at(at)) {
            let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            let selector = after[1..].split('}').next().unwrap();
            for pair in selector.split(',') {
                let (label, values) =
                    pair.split_once("=\"").or_else(|| pair.split_once("=~\"")).expect(&asked);
                let row = &contract[name.trim_end_matches("_bucket")];
                assert!(row.contains(&format!("`{label}`")), "{name} has no {label}: {row}");
                for value in values.trim_end_matches('"').split('|') {
                    assert!(row.contains(&format!("`{value}`")), "{name} has no {label} {value}: {row}");
                }
            }
        }
        // A label in by (label) or on (label) must belong to a metric in the expression, or to Prometheus itself.
        let series = spelled_like_series(&asked);
        let rows: String = series
            .iter()
            .filter_map(|name| contract.get(name).or_else(|| contract.get(name.trim_end_matches("_bucket"))))
            .map(String::as_str)
            .collect();
        for list in ["by (", "on ("].iter().flat_map(|word| asked.split(word).skip(1)) {
            for label in list.split(')').next().unwrap().split(", ") {
                let there =
                    ["job", "instance", "le"].contains(&label) || rows.contains(&format!("`{label}`"));
                assert!(there, "{label} in {asked}");
            }
        }
    }
}

#[test]
fn every_alert_is_described_and_links_a_runbook() {
    let runbooks: BTreeSet<String> = read("docs/operations.md")
        .split("\n## ")
        .find(|section| section.starts_with("Runbooks"))
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|title| title.to_lowercase().replace(' ', "-").replace([',', '"', ':', '`'], ""))
        .collect();
    let mut names = BTreeSet::new();
    for rule in rules() {
        let name = text(&rule["alert"]);
        assert!(name.starts_with("Outbox") && names.insert(name.to_owned()), "{name} is there twice");
        assert!(["info", "warning", "critical"].contains(&text(&rule["labels"]["severity"])), "{name}");
        for annotation in ["summary", "description"] {
            assert!(text(&rule["annotations"][annotation]).len() > 10, "{name}: {annotation}");
        }
        let runbook = text(&rule["annotations"]["runbook_url"]);
        let anchor =
            runbook.strip_prefix("docs/operations.md#").unwrap_or_else(|| panic!("{name}: {runbook}"));
        assert!(runbooks.contains(anchor), "{name}: {runbook} is none of {runbooks:?}");
    }
    assert!(names.len() > 20, "{names:?}");
}

#[test]
fn every_runbook_says_when_it_is_done() {
    let guide = read("docs/operations.md");
    let runbooks = guide.split("\n## ").find(|section| section.starts_with("Runbooks")).unwrap();
    let without: Vec<_> = runbooks
        .split("\n### ")
        .skip(1)
        .filter(|runbook| !runbook.contains("\n**Done when** "))
        .map(|runbook| runbook.lines().next().unwrap())
        .collect();
    assert_eq!(without, [""; 0]);
}

/// An operator's copy of a collection must not be in a watched database, and every sample watches `shop.*`.
#[test]
fn no_runbook_writes_into_a_watched_database() {
    let guide = read("docs/operations.md");
    let targets: Vec<_> = guide.match_indices("$merge").map(|(at, _)| &guide[at..at + 80]).collect();
    assert_eq!(targets.len(), 2);
    for target in targets {
        assert!(target.contains(r#"db: "document_outbox""#), "{target}");
    }
}

/// Checks that a rescuer's grace period is shorter than its lease. Otherwise the rescuer logs a warning at
/// every start, because a rescuer that hangs while stopping blocks the standbys.
fn check_graces(service: &str, given: &BTreeMap<String, String>) {
    let value = |name: &str| given.get(name).cloned().unwrap_or_else(|| defaults(service)[name].clone());
    if service == "outbox-rescuer" {
        let (grace, lease) = (value("OUTBOX_SHUTDOWN_GRACE"), value("OUTBOX_LEASE"));
        assert!(duration(&grace) < duration(&lease), "{service}: grace {grace}, lease {lease}");
    } else {
        let lease = value("OUTBOX_CLAIM_LEASE");
        assert!(duration(&value("OUTBOX_SHUTDOWN_GRACE")) < duration(&lease), "{service}: {lease}");
    }
}

/// Returns the defaults of one service from the tables that this service's tests compare with `--help`.
fn defaults(service: &str) -> BTreeMap<String, String> {
    let text = read("docs/configuration.md");
    let mut defaults = BTreeMap::new();
    // A service's own settings come after the shared settings and override them.
    for wanted in ["Both services", service] {
        let section = text.split("\n## ").find(|section| section.lines().next() == Some(wanted)).unwrap();
        for row in section.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            defaults.insert(cells[2].to_owned(), cells[3].to_owned());
        }
    }
    defaults
}

#[test]
fn the_sample_file_keeps_the_rules_of_its_page() {
    let page = read("docs/configuration.md");
    let sample = page.split("```toml\nmongodb_uri").nth(1).unwrap().split("```").next().unwrap();
    let given = sample
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(key, value)| (format!("OUTBOX_{}", key.to_uppercase()), value.trim_matches('"').to_owned()))
        .collect();
    check_graces("outbox-rescuer", &given);
}

/// If a number in a manifest differs from the default, the manifest must give the reason.
#[test]
fn tuned_values_in_manifests_state_their_reason() {
    let manifest = read("deploy/kubernetes/configmap.yaml");
    let tuned = |name: &str, value: &str| {
        SERVICES.iter().any(|service| {
            defaults(service).get(name).is_some_and(|default| {
                let is_number =
                    |text: &str| text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(':');
                is_number(value) && is_number(default) && value != default
            })
        })
    };
    let lines: Vec<&str> = manifest.lines().collect();
    for (place, line) in lines.iter().enumerate() {
        let Some((name, value)) = line.trim().split_once(": ") else { continue };
        if name.starts_with("OUTBOX_") && tuned(name, value.trim_matches('"')) {
            let above = lines[place - 1].trim();
            assert!(
                above.starts_with('#'),
                "{line} differs from the default, and no comment gives the reason"
            );
        }
    }
}

#[test]
fn every_serious_condition_has_an_alert() {
    let asked: String = rules().iter().map(|rule| text(&rule["expr"]).to_owned() + "\n").collect();
    for series in [
        "outbox_dead_total",
        "outbox_oldest_pending_age_seconds",
        "outbox_stream_lag_seconds",
        "outbox_stream_token_age_seconds",
        "outbox_oplog_headroom_seconds",
        "outbox_positions_lost_total",
        "outbox_lease_owner",
        "outbox_unroutable_total",
        "outbox_unreadable_total",
        "outbox_not_mine_total",
        "outbox_circuit_open",
        "outbox_claims_lost_total",
        "outbox_commands_refused_total",
        "outbox_commands_failed_total",
        "outbox_consumer_ready",
        "outbox_sweeps_total",
        "outbox_indexes_missing",
        "outbox_oversized_total",
        "outbox_deliveries_total",
        "outbox_saves_total{outcome=\"refused\"}",
        "outbox_saves_total{outcome=\"unknown\"}",
        "outbox_consumer_rebuilds_total",
    ] {
        assert!(asked.contains(series), "{series}");
    }
}

#[test]
fn dashboard_panels_have_rows_and_never_overlap() {
    let (panels, _) = dashboard();
    let rows: Vec<_> =
        panels.iter().filter(|panel| panel["type"] == "row").map(|row| text(&row["title"])).collect();
    assert_eq!(rows, ["Flow", "Rescue", "Dispatcher", "Health"]);
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in &panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["id"]);
        let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for cell in
            (at("y")..at("y") + at("h")).flat_map(|y| (at("x")..at("x") + at("w")).map(move |x| (x, y)))
        {
            assert!(taken.insert(cell), "{} lies on another", panel["title"]);
        }
    }
}

/// Returns the variables of one service, and the required ones among them, from the tables that this
/// service's tests compare with `--help`.
fn variables(service: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let text = read("docs/configuration.md");
    let sections = text.split("\n## ").filter(|section| {
        let heading = section.lines().next().unwrap_or_default();
        heading == "Both services" || heading == service
    });
    let rows: Vec<Vec<String>> = sections
        .flat_map(str::lines)
        .filter(|line| line.starts_with("| `"))
        .map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect())
        .collect();
    let of = |wanted: &dyn Fn(&Vec<String>) -> bool| {
        rows.iter().filter(|row| wanted(row)).map(|row| row[2].clone()).collect()
    };
    (of(&|_| true), of(&|row| row[3] == "required"))
}

/// The variable for the address of the probes, which every daemon has.
const HTTP_LISTEN: &str = "OUTBOX_HTTP_LISTEN";

fn check_variables(service: &str, given: &BTreeMap<String, String>) {
    let (known, required) = variables(service);
    assert!(known.len() > 10 && required.len() == 3, "{known:?} {required:?}");
    let unknown: Vec<_> = given.keys().filter(|name| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "{service} has no {unknown:?}");
    let missing: Vec<_> = required.iter().filter(|name| !given.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{service} needs {missing:?}");
}

fn strings(map: &Value) -> BTreeMap<String, String> {
    let map = map.as_object().unwrap_or_else(|| panic!("no table: {map}"));
    map.iter().map(|(name, value)| (name.clone(), text(value).to_owned())).collect()
}

/// Returns the port that the image exposes.
fn port_of_the_image() -> u64 {
    let file = read("deploy/Dockerfile");
    file.lines().find_map(|line| line.strip_prefix("EXPOSE ")).unwrap().parse().unwrap()
}

const SERVICES: [&str; 2] = ["outbox-rescuer", "outbox-dispatcher"];

#[test]
fn the_image_builds_both_services_from_existing_files() {
    let file = read("deploy/Dockerfile");
    for service in SERVICES {
        let built = file.contains(&format!("--package {service}"));
        assert!(built && file.contains(&format!("target/release/{service}")), "{service}");
    }
    let manifest: BTreeMap<String, String> = read("Cargo.toml")
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()))
        .collect();
    assert!(
        file.contains(&format!("FROM rust:{}-", manifest["rust-version"])),
        "{}",
        manifest["rust-version"]
    );
    // The image build fails if a workspace member is missing from the build context.
    let members =
        manifest["members"].trim_matches(['[', ']']).split(", ").map(|member| member.trim_matches('"'));
    let sent = read("deploy/Dockerfile.dockerignore");
    let sent: BTreeSet<&str> = sent.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for part in members.filter(|member| *member != ".").chain(["src", "Cargo.toml", "Cargo.lock"]) {
        assert!(
            sent.contains(part),
            "{part} is not sent to the build: add it to deploy/Dockerfile.dockerignore"
        );
    }
    let user = file.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(!user.starts_with('0') && user != "root", "{user}");
    let listen = format!("ENV {HTTP_LISTEN}=0.0.0.0:{}", port_of_the_image());
    assert!(file.contains(&listen), "{listen}");
}

#[test]
fn the_manifests_fit_services_and_image() {
    let kustomization = &yaml("deploy/kubernetes/kustomization.yaml")[0];
    let resources = items(&kustomization["resources"]).iter().map(text);
    let files = resources.chain(["secret.example.yaml"]);
    let all: Vec<Value> = files.flat_map(|file| yaml(&format!("deploy/kubernetes/{file}"))).collect();
    let of_kind = |kind: &str| all.iter().filter(|item| item["kind"] == kind).collect::<Vec<_>>();
    let namespace = text(&kustomization["namespace"]);
    assert_eq!(text(&of_kind("Namespace")[0]["metadata"]["name"]), namespace);

    let mut settings = BTreeMap::new();
    for item in of_kind("ConfigMap") {
        settings.insert(("configMapRef", text(&item["metadata"]["name"])), strings(&item["data"]));
    }
    for item in of_kind("Secret") {
        assert_eq!(text(&item["metadata"]["namespace"]), namespace);
        settings.insert(("secretRef", text(&item["metadata"]["name"])), strings(&item["stringData"]));
    }

    let deployments = of_kind("Deployment");
    let names: BTreeSet<_> = deployments.iter().map(|item| text(&item["metadata"]["name"])).collect();
    assert_eq!(names, SERVICES.into());
    for deployment in deployments {
        let name = text(&deployment["metadata"]["name"]);
        assert!(deployment["spec"]["replicas"].as_u64() >= Some(2), "{name}");
        let template = &deployment["spec"]["template"];
        let pod = &template["spec"];
        let [container] = items(&pod["containers"]) else { panic!("one container") };
        assert_eq!(items(&container["command"]), [name]);
        assert_eq!(container["image"], kustomization["images"][0]["name"]);

        let mut given = BTreeMap::new();
        for source in items(&container["envFrom"]) {
            for (kind, reference) in source.as_object().unwrap() {
                let key = (kind.as_str(), text(&reference["name"]));
                given.extend(settings.get(&key).unwrap_or_else(|| panic!("{key:?} is nowhere")).clone());
            }
        }
        check_variables(name, &given);
        assert!(given["OUTBOX_MONGODB_URI"].contains("tls=true"), "{name}");
        assert!(given["OUTBOX_RABBITMQ_URI"].starts_with("amqps://"), "{name}");
        for uri in ["OUTBOX_MONGODB_URI", "OUTBOX_RABBITMQ_URI"] {
            assert!(given[uri].contains(&format!("://{name}:")), "a user of its own: {name} {uri}");
        }

        let (volume, mount) = (&pod["volumes"][0], &container["volumeMounts"][0]);
        assert_eq!(volume["name"], mount["name"]);
        let certificates = &settings[&("secretRef", text(&volume["secret"]["secretName"]))];
        let mounted = |file: &str| format!("{}/{file}", text(&mount["mountPath"]));
        let there: Vec<String> = certificates.keys().map(|file| mounted(file)).collect();
        assert!(there.contains(&given["OUTBOX_RABBITMQ_CA_FILE"]), "{there:?}");
        assert!(
            there.iter().any(|file| given["OUTBOX_MONGODB_URI"].contains(&format!("tlsCAFile={file}"))),
            "{there:?}"
        );

        let port = port_of_the_image();
        assert_eq!(container["ports"][0]["containerPort"], port);
        assert_eq!(given[HTTP_LISTEN], format!("0.0.0.0:{port}"));
        assert_eq!(text(&template["metadata"]["annotations"]["prometheus.io/port"]), port.to_string());
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let get = &container[probe]["httpGet"];
            assert_eq!((text(&get["path"]), &get["port"]), (path, &container["ports"][0]["name"]));
        }
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace > duration(&given["OUTBOX_SHUTDOWN_GRACE"]), "{name}");
        check_graces(name, &given);

        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert!(
            read("deploy/Dockerfile").contains(&format!("USER {}:", pod["securityContext"]["runAsUser"]))
        );
        for bound in ["requests", "limits"] {
            assert!(container["resources"][bound]["memory"].is_string(), "{name}");
        }
        let labels = &template["metadata"]["labels"];
        assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
        let budget = of_kind("PodDisruptionBudget").into_iter().find(|item| item["metadata"]["name"] == name);
        assert_eq!(&budget.unwrap()["spec"]["selector"]["matchLabels"], labels);
    }
}

#[test]
fn the_compose_profile_fits_the_services_and_the_image() {
    let compose = &yaml("docker-compose.yml")[0];
    let services = compose["services"].as_object().unwrap();
    for name in SERVICES {
        let service = &services[name.trim_start_matches("outbox-")];
        assert_eq!(items(&service["command"]), [name]);
        assert_eq!(items(&service["profiles"]), ["services"]);
        let build = &service["build"];
        assert!(!read(text(&build["dockerfile"])).is_empty() && build["context"] == ".");
        let given = strings(&service["environment"]);
        check_variables(name, &given);
        check_graces(name, &given);
        assert_eq!(given[HTTP_LISTEN], format!("0.0.0.0:{}", port_of_the_image()));
        let published = text(&service["ports"][0]);
        let loopback = published.starts_with("127.0.0.1:");
        assert!(loopback && published.ends_with(&format!(":{}", port_of_the_image())), "{published}");
        for needed in service["depends_on"].as_object().unwrap().keys() {
            assert!(services.contains_key(needed), "{needed}");
            let led_to = given.values().any(|value| value.contains(&format!("{needed}:")));
            assert!(led_to, "no setting of {name} leads to {needed}");
        }
        assert!(duration(text(&service["stop_grace_period"])) > 25, "longer than shutdown_grace");
    }
    // MongoDB and RabbitMQ, the servers for development, have no profile, so they start by default.
    for name in ["mongodb", "rabbitmq"] {
        assert!(services[name].get("profiles").is_none(), "{name}");
    }
}

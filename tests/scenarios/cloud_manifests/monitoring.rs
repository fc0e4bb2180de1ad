//! Rules of Prometheus and dashboards of Grafana.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use e2e_tests::eventually::eventually;
use e2e_tests::manifests::cloud::metrics::{asked, known, unknown};
use e2e_tests::manifests::cloud::prometheus::{Prometheus, promtool};
use e2e_tests::manifests::cloud::{folder, yaml};
use e2e_tests::publisher::{Publisher, reading_json};
use serde_json::{Value, json};

use super::{changed, scenario_dir, text_of};
use crate::plant::{DEADLINE, Plant, now};

const PROGRAMS: [&str; 2] = ["cloud-aggregator", "edge-module"];
/// Widest and highest place of a panel in Grafana's grid.
const GRID_COLUMNS: u64 = 24;
const RANGE: &str = "1m";

/// What the tests of the rules must notice: file, and a change that makes a rule fire too late, too early or never.
const WRONG_RULES: [(&str, &str, &str); 9] = [
    (
        "cloud-aggregator",
        "up{job=\"cloud-aggregator\"} == 0\n        for: 2m",
        "up{job=\"cloud-aggregator\"} == 0\n        for: 9m",
    ),
    ("cloud-aggregator", "absent(up", "absent(down"),
    (
        "cloud-aggregator",
        "max by (job, topic, partition) (aggregator_lag_records)) > 0",
        "max by (job, topic, partition) (aggregator_lag_records)) > 1e9",
    ),
    ("cloud-aggregator", "> 600 * ", "> 6000 * "),
    (
        "cloud-aggregator",
        "aggregator_accounting_imbalance_records != 0",
        "aggregator_accounting_imbalance_records > 0",
    ),
    (
        "cloud-aggregator",
        "min_over_time(aggregator_alerts_pending[15m])",
        "max_over_time(aggregator_alerts_pending[15m])",
    ),
    ("edge-module", "0.8 * edge_limit", "0.9 * edge_limit"),
    ("edge-module", "part_ready == 0", "part_ready == 2"),
    ("edge-module", "seconds < 14 * 86400", "seconds < 15 * 86400"),
];

fn prometheus_dir() -> PathBuf {
    folder().join("local/prometheus")
}

/// Name and expression of each alert of a file of rules.
fn alerts_of(program: &str) -> anyhow::Result<Vec<(String, String)>> {
    let file = prometheus_dir().join(format!("rules/{program}.rules.yml"));
    let read = yaml(&[&file])?;
    let groups = read[0][0]["groups"].as_array().context("groups")?;
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let text = |value: &Value| value.as_str().map(str::to_owned);
    rules
        .map(|rule| text(&rule["alert"]).zip(text(&rule["expr"])).context("alert and expr"))
        .collect()
}

/// A query of a dashboard.
#[derive(Clone, Debug)]
struct Query {
    panel: String,
    expression: String,
    /// Labels that its legend shows.
    labels: Vec<String>,
}

fn labels_in(legend: &str) -> Vec<String> {
    let inside = |rest: &str| rest.split_once("}}").map(|(label, _)| label.to_owned());
    legend.split("{{").skip(1).filter_map(inside).collect()
}

fn queries_of(program: &str) -> anyhow::Result<Vec<Query>> {
    let dashboard = dashboard(program)?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let title = panel["title"].as_str().context("title")?;
        for target in panel["targets"].as_array().context("targets")? {
            queries.push(Query {
                panel: title.to_owned(),
                expression: target["expr"].as_str().context("expr")?.to_owned(),
                labels: labels_in(target["legendFormat"].as_str().context("legendFormat")?),
            });
        }
    }
    Ok(queries)
}

fn dashboard(program: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&text_of(&format!("local/grafana/dashboards/{program}.json"))?)?)
}

/// As Grafana fills it in.
fn filled(expression: &str) -> String {
    expression.replace("$__rate_interval", RANGE).replace("$instance", ".*")
}

#[test]
fn prometheus_takes_its_configuration_and_the_rules_keep_their_tests() -> anyhow::Result<()> {
    let (is_good, said) = promtool(&prometheus_dir(), &["check", "config", "prometheus.yml"])?;
    ensure!(is_good, "{said}");
    for program in PROGRAMS {
        let tests = format!("tests/{program}.test.yml");
        let (is_good, said) = promtool(&prometheus_dir(), &["test", "rules", &tests])?;
        ensure!(is_good, "{said}");
        let text = text_of(&format!("local/prometheus/{tests}"))?;
        for (alert, _) in alerts_of(program)? {
            let named = format!("alertname=\"{alert}\"");
            let expected = format!("alertname: {alert}\n        exp_alerts:\n          - ");
            ensure!(text.contains(&named) || text.contains(&expected), "no test lets {alert} fire");
        }
    }
    Ok(())
}

#[test]
fn a_rule_that_is_wrong_fails_its_test() -> anyhow::Result<()> {
    let dir = scenario_dir("wrong-rules")?;
    for part in ["rules", "tests"] {
        std::fs::create_dir_all(dir.join(part))?;
    }
    for (program, from, to) in WRONG_RULES {
        let (rules, tests) =
            (format!("rules/{program}.rules.yml"), format!("tests/{program}.test.yml"));
        let text = text_of(&format!("local/prometheus/{rules}"))?;
        std::fs::write(dir.join(&rules), changed(&text, from, to)?)?;
        std::fs::copy(prometheus_dir().join(&tests), dir.join(&tests))?;
        let (is_good, said) = promtool(&dir, &["test", "rules", &tests])?;
        ensure!(!is_good && said.contains("FAILED"), "{from} -> {to}: {said}");
    }
    Ok(())
}

#[test]
fn rules_and_dashboards_ask_for_metrics_that_there_are() -> anyhow::Result<()> {
    let known = known()?;
    for program in PROGRAMS {
        let queries = queries_of(program)?.into_iter().map(|query| (query.panel, query.expression));
        for (place, expression) in alerts_of(program)?.into_iter().chain(queries) {
            let unknown = unknown(&expression, &known);
            ensure!(unknown.is_empty(), "{program}: {place}: no program exports {unknown:?}");
            ensure!(!asked(&expression).is_empty(), "{program}: {place}: asks for nothing");
        }
    }
    Ok(())
}

/// Rules that record each query: promtool reads the expressions as Prometheus does.
#[test]
fn every_query_of_the_dashboards_is_promql() -> anyhow::Result<()> {
    let dir = scenario_dir("dashboards")?;
    let check = |name: &str, queries: &[String]| {
        let rules: Vec<Value> =
            queries.iter().map(|query| json!({"record": "query", "expr": query})).collect();
        let groups = json!({"groups": [{"name": name, "rules": rules}]});
        // JSON is YAML.
        std::fs::write(dir.join(format!("{name}.yml")), groups.to_string())?;
        // Duplicates are what these are: the same name for each.
        promtool(&dir, &["check", "rules", "--lint=none", &format!("{name}.yml")])
    };
    for program in PROGRAMS {
        let queries: Vec<String> =
            queries_of(program)?.iter().map(|query| filled(&query.expression)).collect();
        ensure!(queries.len() > 20, "{program}: {} queries", queries.len());
        let (is_good, said) = check(program, &queries)?;
        ensure!(is_good, "{said}");
        let (is_good, said) = check("wrong", &[queries[0].replacen('(', "", 1)])?;
        ensure!(!is_good, "{said}");
    }
    Ok(())
}

#[test]
fn a_dashboard_is_whole() -> anyhow::Result<()> {
    let sources = yaml(&[&folder().join("local/grafana/provisioning/datasources/prometheus.yml")])?;
    let source = &sources[0][0]["datasources"][0];
    ensure!(source["url"] == "http://127.0.0.1:9090", "{source}");
    for program in PROGRAMS {
        let dashboard = dashboard(program)?;
        assert_eq!(dashboard["uid"], program);
        let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
        for panel in dashboard["panels"].as_array().context("panels")? {
            ensure!(ids.insert(panel["id"].as_u64().context("id")?), "{program}: an id twice");
            let number = |key: &str| panel["gridPos"][key].as_u64().context("a place");
            ensure!(places.insert((number("x")?, number("y")?)), "{program}: a place twice");
            ensure!(number("x")? + number("w")? <= GRID_COLUMNS, "{program}: too wide");
            for target in panel["targets"].as_array().context("targets")? {
                ensure!(target["datasource"]["uid"] == source["uid"], "{program}: {target}");
            }
        }
    }
    Ok(())
}

/// The port that a program was told in its configuration.
fn admin_port(configuration: &Path) -> anyhow::Result<u16> {
    let text = std::fs::read_to_string(configuration)?;
    let behind = text.split_once("[admin]\nlisten = \"127.0.0.1:").context("[admin]")?.1;
    Ok(behind.split('"').next().unwrap_or_default().parse()?)
}

/// Panels that have something to show as soon as readings flow.
const SHOWN_AT_ONCE: [&str; 16] = [
    "Instances that answer",
    "Records not in the lake yet",
    "Records unaccounted for",
    "Records in",
    "What became of them",
    "Duration of a commit",
    "Partitions",
    "Rows",
    "Gateways that answer",
    "Machines stopped",
    "Message received to judged",
    "Messages and readings",
    "Journal",
    "Journalled and delivered",
    "From a group to its fsync",
    "Parts that are ready",
];

#[test]
fn prometheus_scrapes_both_programs_and_the_dashboards_show_them() -> anyhow::Result<()> {
    let mut plant = Plant::new("monitoring")?;
    plant.edge_settings.machines =
        "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"oil-hot\"\n\
         sensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\n"
            .to_owned();
    let edge = plant.start_edge_module()?;
    let aggregator = plant.start_aggregator()?;
    let targets = BTreeMap::from([
        ("edge-module", admin_port(&plant.dir.join("edge-module/edge-module.toml"))?),
        (
            "cloud-aggregator",
            admin_port(&plant.dir.join("cloud-aggregator/cloud-aggregator.toml"))?,
        ),
    ]);
    let rules = prometheus_dir().join("rules");
    let prometheus = Prometheus::start(&plant.dir.join("prometheus"), &rules, &targets)?;
    let expected: usize = alerts_of(PROGRAMS[0])?.len() + alerts_of(PROGRAMS[1])?.len();
    let rules = prometheus.api("rules")?;
    let groups = rules["groups"].as_array().context("groups")?;
    let loaded = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
    assert_eq!(loaded.count(), expected);

    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let mut empty: BTreeSet<String> = SHOWN_AT_ONCE.map(str::to_owned).into();
    let queries = [queries_of(PROGRAMS[0])?, queries_of(PROGRAMS[1])?].concat();
    for title in &empty {
        ensure!(queries.iter().any(|query| query.panel == *title), "there is no panel {title:?}");
    }
    eventually("panels show something", DEADLINE, || {
        let reading = reading_json("press-1", "press-1/oil", "temperature", now(), 71.0);
        publisher.publish("plant/press-1/readings", reading)?;
        // Each query is asked: one that Prometheus refuses is an error, also where there is nothing to show.
        for query in &queries {
            let found = prometheus.query(&filled(&query.expression))?;
            for label in &query.labels {
                let is_there = |series: &Value| series["metric"][label].is_string();
                ensure!(found.iter().all(is_there), "{query:?} gives no {label}: {found:?}");
            }
            let has_value = |series: &Value| series["value"][1] != "NaN";
            if found.iter().any(has_value) {
                empty.remove(&query.panel);
            }
        }
        ensure!(empty.is_empty(), "empty: {empty:?}");
        anyhow::Ok(())
    })?;
    // All is well: nothing fires, and both are there.
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}")?;
    ensure!(firing.is_empty(), "{firing:#?}");
    assert_eq!(prometheus.query("up == 1")?.len(), PROGRAMS.len());
    drop((edge, aggregator));
    // Both are gone.
    eventually("it is noticed", DEADLINE, || {
        let gone = prometheus.query("ALERTS{alertname=~\"EdgeModuleDown|CloudAggregatorDown\"}")?;
        ensure!(gone.len() == PROGRAMS.len(), "{gone:?}");
        anyhow::Ok(())
    })
}

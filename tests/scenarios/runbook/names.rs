//! Settings, metrics and targets of make that the repository has, to be held against the words of the runbook.

use std::collections::BTreeSet;

use anyhow::Context as _;
use e2e_tests::workspace_root;
use serde_json::Value;

/// Names with a dot that end so are files.
const FILE_ENDINGS: [&str; 9] =
    ["toml", "json", "md", "yaml", "yml", "conf", "service", "txt", "xml"];
/// Folders of this document's own folder; a word that begins with one is a path.
const FOLDERS: [&str; 5] = ["cloud/", "edge/", "image/", "local/", "systemd/"];

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Names {
    metrics: BTreeSet<String>,
    /// First words of metrics, such as `journal`.
    domains: BTreeSet<String>,
    /// Tables and columns of the lake.
    columns: BTreeSet<String>,
    settings: BTreeSet<String>,
    targets: BTreeSet<String>,
}

impl Names {
    pub(super) fn of_the_repository() -> anyhow::Result<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(workspace_root().join(path)).with_context(|| path.to_owned())
        };
        let mut names = Self::default();
        for program in ["edge-module", "cloud-aggregator"] {
            let text = read(&format!("{program}/src/telemetry.rs"))?;
            let quoted = text.split('"').skip(1).step_by(2);
            names.metrics.extend(quoted.filter(|word| is_snake_case(word)).map(str::to_owned));
            add_settings(&mut names.settings, &read(&format!("{program}/config/default.toml"))?);
        }
        let domain = |metric: &String| metric.split('_').next().map(str::to_owned);
        names.domains = names.metrics.iter().filter_map(domain).collect();
        let contract = read("cloud-aggregator/contract/lake.odcs.json")?;
        add_names(&mut names.columns, &serde_json::from_str(&contract)?);
        let makefile = read("Makefile")?;
        let rules = makefile.lines().filter_map(|line| line.split_once(": ##"));
        names.targets = rules.map(|(target, _)| target.to_owned()).collect();
        Ok(names)
    }

    /// What is wrong with a word in backticks.
    pub(super) fn fault(&self, word: &str) -> Option<String> {
        let bare = word.split('{').next().unwrap_or_default();
        let bare = bare.trim_start_matches('[').trim_end_matches(']');
        if is_snake_case(bare) {
            let domain = bare.split('_').next().unwrap_or_default();
            let looks_like_metric = self.domains.contains(domain);
            let is_known = self.metrics.contains(bare) || self.columns.contains(bare);
            return (looks_like_metric && !is_known).then(|| format!("no metric {bare}"));
        }
        if is_setting(bare) {
            return (!self.settings.contains(bare)).then(|| format!("no setting {bare}"));
        }
        if let Some(target) = word.strip_prefix("make ") {
            let target = target.split(' ').next().unwrap_or_default();
            return (!self.targets.contains(target)).then(|| format!("no target {target}"));
        }
        let is_path = FOLDERS.iter().any(|folder| word.starts_with(folder));
        let path = workspace_root().join("deployment-manifests").join(word);
        (is_path && !path.exists()).then(|| format!("no file {word}"))
    }

    /// Words of a page that a program shows, rather than of the tables or metrics.
    pub(super) fn is_of_a_page(&self, word: &str) -> bool {
        is_snake_case(word) && !self.metrics.contains(word) && !self.columns.contains(word)
    }
}

fn is_snake_case(word: &str) -> bool {
    let is_of_it = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    word.contains('_')
        && word.starts_with(|first: char| first.is_ascii_lowercase())
        && word.bytes().all(is_of_it)
}

/// Kebab-case words joined by dots that are no name of a file.
fn is_setting(word: &str) -> bool {
    let is_of_it = |byte: u8| byte.is_ascii_lowercase() || byte == b'-' || byte == b'.';
    let ending = word.rsplit('.').next().unwrap_or_default();
    word.contains('.')
        && word.starts_with(|first: char| first.is_ascii_lowercase())
        && word.bytes().all(is_of_it)
        && !FILE_ENDINGS.contains(&ending)
}

/// Tables and keys of a file of defaults, those in its commented examples, too.
fn add_settings(settings: &mut BTreeSet<String>, text: &str) {
    // Keys below a commented table belong to that one only as long as they are commented, too.
    let (mut table, mut example) = (String::new(), String::new());
    for line in text.lines() {
        let content = line.trim_start_matches([' ', '#']);
        let is_comment = line.trim_start().starts_with('#');
        if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let name = name.trim_start_matches('[').to_owned();
            settings.insert(name.clone());
            if !is_comment {
                table.clone_from(&name);
            }
            example = name;
        } else if let Some((key, _)) = content.split_once(" = ") {
            let table = if is_comment { &example } else { &table };
            settings.insert(if table.is_empty() {
                key.to_owned()
            } else {
                format!("{table}.{key}")
            });
        }
    }
}

fn add_names(names: &mut BTreeSet<String>, value: &Value) {
    match value {
        Value::Object(members) => {
            names.extend(members.get("name").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|value| add_names(names, value));
        }
        Value::Array(values) => values.iter().for_each(|value| add_names(names, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn words_that_name_nothing_are_found() -> anyhow::Result<()> {
    let names = Names::of_the_repository()?;
    let wrong = [
        "journal_disk_byte",
        "aggregator_lags",
        "journal_lost_record_total{cause=\"evicted-cap\"}",
        "journal.byte-max",
        "jurnal.bytes-max",
        "[maintenance.retentions]",
        "make debs",
        "local/promethius/",
    ];
    for word in wrong {
        assert!(names.fault(word).is_some(), "{word}");
    }
    let right = [
        "journal_disk_bytes",
        "journal_lost_records_total{cause=\"evicted-cap\"}",
        "machine_events",
        "journal.bytes-max",
        "alerts.targets.url-file",
        "alerts.webhook-url",
        "machines.limits.above",
        "[maintenance.retention]",
        "make deb",
        "local/prometheus/",
        "set-models.json",
        "edge-module explain latest",
    ];
    for word in right {
        assert_eq!(names.fault(word), None, "{word}");
    }
    Ok(())
}

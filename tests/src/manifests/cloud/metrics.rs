//! Names of metrics: those that the programs have, and those that an expression of PromQL asks for.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};

use crate::workspace_root;

/// Prometheus's own.
const OWN: [&str; 2] = ["ALERTS", "up"];
/// What a histogram is read by.
const SUFFIXES: [&str; 3] = ["_bucket", "_count", "_sum"];
/// Words of the language behind which labels stand in parentheses.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const WORDS: [&str; 5] = ["and", "or", "unless", "offset", "bool"];

/// Names of all metrics of both programs: the constants of their `telemetry.rs` and of the modules beside it.
///
/// # Errors
/// A file is missing, or holds none.
pub fn known() -> anyhow::Result<BTreeSet<String>> {
    let mut names: BTreeSet<String> = OWN.map(str::to_owned).into();
    for (file, prefix) in [
        ("cloud-aggregator/src/telemetry.rs", "aggregator_"),
        ("cloud-aggregator/src/outcomes.rs", "aggregator_"),
        ("cloud-aggregator/src/sink/webhook/status.rs", "aggregator_"),
        ("edge-module/src/telemetry.rs", ""),
    ] {
        let path = workspace_root().join(file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let found: BTreeSet<String> =
            text.lines().filter_map(|line| constant(line, prefix)).map(str::to_owned).collect();
        ensure!(!found.is_empty(), "{file} names no metric");
        names.extend(found);
    }
    Ok(names)
}

/// `NAME = "metric";` or its second line.
fn constant<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    let (_, rest) = line.strip_suffix("\";")?.split_once('"')?;
    let is_name = rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (is_name && rest.contains('_') && rest.starts_with(prefix)).then_some(rest)
}

/// Metrics that an expression asks for and that no program has.
#[must_use]
pub fn unknown(expression: &str, known: &BTreeSet<String>) -> Vec<String> {
    let is_known = |name: &String| {
        let base = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
        known.contains(name) || base.is_some_and(|base| known.contains(base))
    };
    asked(expression).into_iter().filter(|name| !is_known(name)).collect()
}

/// Metrics that an expression asks for.
#[must_use]
pub fn asked(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let is_part = |symbol: char| symbol.is_ascii_alphanumeric() || symbol == '_';
        if is_part(first) {
            let (word, behind) =
                rest.split_at(rest.find(|symbol| !is_part(symbol)).unwrap_or(rest.len()));
            rest = behind.trim_start();
            if BEFORE_LABELS.contains(&word) {
                rest = behind_closing(rest, ')');
            } else if !first.is_ascii_digit() && !WORDS.contains(&word) && !is_function(rest) {
                names.insert(word.to_owned());
            }
        } else {
            rest = match first {
                '"' | '\'' => behind_closing(&rest[1..], first),
                '{' => behind_closing(rest, '}'),
                '[' => behind_closing(rest, ']'),
                _ => &rest[first.len_utf8()..],
            };
        }
    }
    names
}

/// Whether what comes after a word makes it a function or an aggregation: `rate(…)`, `sum by (…) (…)`.
fn is_function(rest: &str) -> bool {
    let grouping = |word: &str| {
        rest.strip_prefix(word).is_some_and(|behind| behind.trim_start().starts_with('('))
    };
    rest.starts_with('(') || grouping("by") || grouping("without")
}

/// What comes after the first `closing`; all of these files' labels are free of it.
fn behind_closing(text: &str, closing: char) -> &str {
    text.split_once(closing).map_or("", |(_, behind)| behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_functions_labels_ranges_and_words() {
        let check = |expression: &str, expected: &[&str]| {
            let found = asked(expression);
            assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        };
        check("up{job=\"a_b\"} == 0", &["up"]);
        check(
            "sum by (job, le) (rate(a_bucket{x=~\"c_d\"}[$__rate_interval])) > 0.5",
            &["a_bucket"],
        );
        check("a unless on (job) b offset 15m or c", &["a", "b", "c"]);
        check("histogram_quantile(0.99, sum without(le)(d_sum)) > 1e6", &["d_sum"]);
        check("count(f) > bool 2", &["f"]);
    }

    #[test]
    fn a_metric_that_nobody_has_is_named() {
        let known: BTreeSet<String> = ["a_seconds".to_owned()].into();
        assert!(unknown("rate(a_seconds_bucket[5m])", &known).is_empty());
        assert_eq!(unknown("rate(a_second_bucket[5m])", &known), ["a_second_bucket"]);
    }

    #[test]
    fn both_programs_name_theirs() -> anyhow::Result<()> {
        let known = known()?;
        for name in ["aggregator_maintenance_last_success_age_seconds", "aggregator_alert_circuit"]
        {
            assert!(known.contains(name), "{name}");
        }
        assert!(known.contains("interlock_machine_stop_not_confirmed"));
        Ok(())
    }
}

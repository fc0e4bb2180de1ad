//! Reads the lake with a reader that is not ours: Python reads the log, DuckDB the Parquet files.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

/// A folder of Delta tables.
#[derive(Clone, Debug)]
pub struct LakeReader {
    lake: PathBuf,
}

/// What a table's log asks of its readers and holds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct TableProtocol {
    /// Lowest reader version.
    pub reader: u32,
    /// Lowest writer version.
    pub writer: u32,
    /// Newest version of the table.
    pub version: u64,
    /// Files that hold its rows.
    pub files: u64,
}

/// What a query reads, and what there is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Touched {
    /// Files.
    pub files: (u64, u64),
    /// Row groups.
    pub row_groups: (u64, u64),
    /// Bytes of these row groups, not compressed.
    pub bytes: (u64, u64),
}

/// One closed window: sensor, start in microseconds since 1970, matches.
pub type WindowCount = (String, i64, u64);

impl LakeReader {
    /// Makes the container of a lake in Azurite.
    ///
    /// # Errors
    /// It is there already, or nobody answers.
    pub fn create_container(&self) -> anyhow::Result<()> {
        self.run(&["create", &self.lake_text()?]).map(drop)
    }

    /// A reader of the tables in `lake`, a folder or a URL of Azurite, which need not be there yet.
    #[must_use]
    pub fn new(lake: &Path) -> Self {
        Self { lake: lake.to_owned() }
    }

    /// Rows of a DuckDB query over the lake's tables, each a JSON object by column.
    ///
    /// # Errors
    /// A table of the query is not there (yet), or the query is wrong.
    pub fn query(&self, sql: &str) -> anyhow::Result<Vec<Value>> {
        let output = self.run(&["query", &self.lake_text()?, sql])?;
        output.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The one number that a query answers.
    ///
    /// # Errors
    /// As [`Self::query`], or the answer is not one whole number.
    pub fn count(&self, sql: &str) -> anyhow::Result<u64> {
        let rows = self.query(sql)?;
        let number = rows.first().and_then(Value::as_object).and_then(|row| row.values().next());
        number.and_then(Value::as_u64).with_context(|| format!("no number: {sql}: {rows:?}"))
    }

    /// Every table's protocol and size, by name.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn protocols(&self) -> anyhow::Result<std::collections::BTreeMap<String, TableProtocol>> {
        Ok(serde_json::from_str(&self.run(&["protocol", &self.lake_text()?])?)?)
    }

    /// Files, row groups and bytes that a query for `column = value` within a span of time must read, of how many.
    ///
    /// # Errors
    /// A log or a file cannot be read.
    pub fn touched(
        &self,
        table: &str,
        (column, value): (&str, &str),
        (from, to): (&str, &str),
    ) -> anyhow::Result<Touched> {
        let lake = self.lake_text()?;
        Ok(serde_json::from_str(&self.run(&["touched", &lake, table, column, value, from, to])?)?)
    }

    /// Seconds from the time of a row to the commit that brought it (by the time of the file in the log): median, 99th percentile and
    /// the longest. Rows of the first `skip` seconds are left out.
    ///
    /// # Errors
    /// The table is not there (yet), or holds no such rows.
    pub fn commit_latency(&self, table: &str, skip: u64) -> anyhow::Result<[f64; 3]> {
        let output = self.run(&["latency", &self.lake_text()?, table, &skip.to_string()])?;
        Ok(serde_json::from_str(&output)?)
    }

    /// Batch count over `telemetry`: for each sensor and minute the readings of `metric_type` above `above`, where there are
    /// more than `count_more_than`; ordered.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn batch_windows(
        &self,
        metric_type: &str,
        above: f64,
        count_more_than: u64,
    ) -> anyhow::Result<Vec<WindowCount>> {
        self.windows(&format!(
            "SELECT sensor_id, epoch_us(timestamp) // 60000000 * 60000000 AS window_start, count(*) AS matches \
             FROM telemetry WHERE metric_type = '{metric_type}' AND value > {above} \
             AND coalesce(quality, 'good') <> 'bad' \
             GROUP BY ALL HAVING count(*) > {count_more_than} ORDER BY ALL"
        ))
    }

    /// Rows of a query with the columns `sensor_id`, `window_start` (microseconds) and `matches`.
    ///
    /// # Errors
    /// As [`Self::query`], or a column is missing.
    pub fn windows(&self, sql: &str) -> anyhow::Result<Vec<WindowCount>> {
        let rows = self.query(sql)?;
        let window = |row: &Value| {
            Some((
                row["sensor_id"].as_str()?.to_owned(),
                row["window_start"].as_i64()?,
                row["matches"].as_u64()?,
            ))
        };
        rows.iter().map(|row| window(row).with_context(|| format!("not a window: {row}"))).collect()
    }

    fn lake_text(&self) -> anyhow::Result<String> {
        Ok(self.lake.to_str().context("the lake's path is not UTF-8")?.to_owned())
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let python = crate::setup_dir().join("venv/bin/python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lake_reader.py");
        let output = Command::new(&python)
            .arg(script)
            .args(arguments)
            .output()
            .with_context(|| format!("{}: run `make setup`", python.display()))?;
        if !output.status.success() {
            bail!("reading the lake: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

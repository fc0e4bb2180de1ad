//! `[maintenance]`.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

use crate::sink::rows::CURRENT_WINDOWS;

/// `[maintenance]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Maintenance {
    /// Whether `run` maintains the tables.
    pub enabled: bool,
    /// Wait between two rounds.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How long an instance that is gone keeps others from maintenance.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// First wait after a failure.
    #[serde(with = "humantime_serde")]
    pub retry_min: Duration,
    /// Longest wait after a failure.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// Files become about this large.
    pub target_file_bytes: u64,
    /// Small files that are waited for.
    pub files_min: usize,
    /// After the end of a day.
    #[serde(with = "humantime_serde")]
    pub settle: Duration,
    /// Memory for sorting.
    pub memory_bytes_max: usize,
    /// Rows of a row group.
    pub row_group_rows: usize,
    /// Commits between two log checkpoints.
    pub checkpoint_commits: u64,
    /// How long commits stay readable one by one.
    #[serde(with = "humantime_serde")]
    pub log_retention: Duration,
    /// How long removed files stay.
    #[serde(with = "humantime_serde")]
    pub vacuum_retention: Duration,
    /// How often they are looked for.
    #[serde(with = "humantime_serde")]
    pub vacuum_interval: Duration,
    /// How often it is computed from the lake how often alerts were right.
    #[serde(with = "humantime_serde")]
    pub precision_interval: Duration,
    /// How long rows stay.
    pub retention: Retention,
}

/// `[maintenance.retention]`: how long rows of a table stay, by their date; zero: for ever.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Retention {
    /// `telemetry`.
    #[serde(with = "humantime_serde")]
    pub telemetry: Duration,
    /// `anomalies`.
    #[serde(with = "humantime_serde")]
    pub anomalies: Duration,
    /// `late_readings`.
    #[serde(with = "humantime_serde")]
    pub late_readings: Duration,
    /// `machine_events`.
    #[serde(with = "humantime_serde")]
    pub machine_events: Duration,
    /// `alerts`.
    #[serde(with = "humantime_serde")]
    pub alerts: Duration,
    /// `outcomes`.
    #[serde(with = "humantime_serde")]
    pub outcomes: Duration,
    /// `waveforms`.
    #[serde(with = "humantime_serde")]
    pub waveforms: Duration,
    /// `dead_letters`.
    #[serde(with = "humantime_serde")]
    pub dead_letters: Duration,
}

impl Retention {
    /// Of a table; one that is unknown keeps its rows.
    #[must_use]
    pub fn of(&self, table: &str) -> Duration {
        self.all().into_iter().find(|(name, _)| *name == table).map_or(Duration::ZERO, |(_, of)| of)
    }

    /// By the table's name.
    #[must_use]
    pub fn all(&self) -> [(&'static str, Duration); 8] {
        [
            ("telemetry", self.telemetry),
            ("anomalies", self.anomalies),
            ("late_readings", self.late_readings),
            ("machine_events", self.machine_events),
            ("alerts", self.alerts),
            ("outcomes", self.outcomes),
            ("waveforms", self.waveforms),
            ("dead_letters", self.dead_letters),
        ]
    }
}

/// How long files stay that a table no longer names. Each epoch replaces those of `current_windows`: a week of them would be millions.
#[must_use]
pub fn vacuum_retention(settings: &Maintenance, table: &str) -> Duration {
    const OF_CURRENT_WINDOWS: Duration = Duration::from_secs(3600);
    if table == CURRENT_WINDOWS {
        settings.vacuum_retention.min(OF_CURRENT_WINDOWS)
    } else {
        settings.vacuum_retention
    }
}

/// Delta table properties that tell the retentions to other programs.
#[must_use]
pub fn table_properties(settings: &Maintenance, table: &str) -> HashMap<String, String> {
    let interval = |duration: Duration| format!("interval {} seconds", duration.as_secs());
    let of_files = interval(vacuum_retention(settings, table));
    HashMap::from([
        ("delta.logRetentionDuration".to_owned(), interval(settings.log_retention)),
        ("delta.deletedFileRetentionDuration".to_owned(), of_files),
    ])
}

//! What `maintenance.retention` may have removed, as far as the settings tell: it cannot be compared.

use std::collections::{BTreeMap, BTreeSet};

use aggregator_core::checkpoint::SideTable;
use aggregator_core::maintenance::first_day_kept;
use aggregator_core::{Accounting, Micros, ProcessingTime};

use super::{RECORD_TABLES, day_of};
use crate::config::Settings;
use crate::sink::rows::TELEMETRY;

/// The clock of who removes rows is ahead of this one by less.
const CLOCKS_APART: Micros = Micros::from_seconds(300);

/// What the tables keep.
#[derive(Debug)]
pub(super) struct Kept {
    /// Record tables whose old rows are removed.
    shortened: BTreeSet<&'static str>,
    /// By topic: the table of the records that are no dead letters and not late.
    homes: BTreeMap<String, &'static str>,
    /// First microsecond of the dates that both `telemetry` and `anomalies` keep.
    since: i64,
}

impl Kept {
    pub(super) fn new(settings: &Settings, now: ProcessingTime) -> Self {
        let retention = &settings.maintenance.retention;
        let is_shortened = |table: &&'static str| !retention.of(table).is_zero();
        let latest = now.saturating_add(CLOCKS_APART);
        let first_day = |table| first_day_kept(latest, Micros::from(retention.of(table)));
        let days = [TELEMETRY, SideTable::Anomalies.as_str()].into_iter().filter_map(first_day);
        let topics = &settings.kafka.topics;
        let homes = [
            (&topics.temperature, TELEMETRY),
            (&topics.pressure, TELEMETRY),
            (&topics.vibration, TELEMETRY),
            (&topics.machine_events, SideTable::MachineEvents.as_str()),
            (&topics.dead_letters, SideTable::DeadLetters.as_str()),
            (&topics.outcomes, SideTable::Outcomes.as_str()),
            (&topics.waveforms, SideTable::Waveforms.as_str()),
        ];
        Self {
            shortened: RECORD_TABLES.into_iter().filter(is_shortened).collect(),
            homes: homes.into_iter().map(|(topic, table)| (topic.clone(), table)).collect(),
            since: days.max().map_or(i64::MIN, |day| day_of(&day.to_string())),
        }
    }

    pub(super) fn is_shortened(&self, table: &str) -> bool {
        self.shortened.contains(table)
    }

    /// Windows that begin earlier may lack rows. `first`: the first date that `telemetry` has; a retention that was shorter once
    /// has removed more than the one of today asks for.
    pub(super) fn windows_since(&self, first: Option<i64>) -> i64 {
        let first = first.filter(|_| self.is_shortened(TELEMETRY));
        self.since.max(first.unwrap_or(i64::MIN))
    }

    /// How many of the `asked` rows of a table may have been removed, if it has `there`.
    pub(super) fn expired_of(&self, table: &str, asked: u64, there: u64) -> u64 {
        if self.is_shortened(table) { asked.saturating_sub(there) } else { 0 }
    }

    /// How many rows of a partition's records may have been removed. `rows`: those that a table has.
    pub(super) fn expired(
        &self,
        topic: &str,
        accounting: &Accounting,
        rows: impl Fn(&str) -> u64,
    ) -> u64 {
        let Accounting { counted, late, dead_letters, .. } = *accounting;
        let Some(home) = self.homes.get(topic) else {
            // Of a topic that is not read any more nobody knows where its records went.
            let there: u64 = RECORD_TABLES.into_iter().map(&rows).sum();
            let all = counted + late + dead_letters;
            return if self.shortened.is_empty() { 0 } else { all.saturating_sub(there) };
        };
        let shares = [
            (*home, counted),
            (SideTable::LateReadings.as_str(), late),
            (SideTable::DeadLetters.as_str(), dead_letters),
        ];
        let expired = |table: &'static str| {
            let of_table = shares.iter().filter(|(name, _)| *name == table);
            let asked = of_table.map(|(_, count)| *count).sum();
            self.expired_of(table, asked, rows(table))
        };
        RECORD_TABLES.into_iter().map(expired).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared_proto::model::EventTime;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn micros(text: &str) -> i64 {
        EventTime::parse(text).expect("a moment").micros()
    }

    fn kept(change: impl Fn(&mut Settings)) -> Kept {
        let mut settings = Settings::load(None).expect("valid defaults");
        change(&mut settings);
        Kept::new(&settings, ProcessingTime::from_micros(micros("2026-03-10T12:00:00Z")))
    }

    #[test]
    fn windows_are_compared_from_the_first_date_that_both_their_tables_keep() {
        let early = Some(micros("2001-01-01T00:00:00Z"));
        assert_eq!(kept(|_| {}).windows_since(early), i64::MIN);
        let of_anomalies = kept(|settings| settings.maintenance.retention.anomalies = 3 * DAY);
        assert_eq!(of_anomalies.windows_since(early), micros("2026-03-07T00:00:00Z"));
        let late = Some(micros("2026-03-09T00:00:00Z"));
        assert_eq!(of_anomalies.windows_since(late), micros("2026-03-07T00:00:00Z"));
        let of_telemetry = kept(|settings| settings.maintenance.retention.telemetry = 30 * DAY);
        assert_eq!(of_telemetry.windows_since(early), micros("2026-02-08T00:00:00Z"));
        assert_eq!(of_telemetry.windows_since(late), micros("2026-03-09T00:00:00Z"));
    }

    #[test]
    fn a_retention_explains_rows_of_its_own_table_alone() {
        let accounting =
            Accounting { records_in: 100, counted: 80, late: 7, duplicates: 10, dead_letters: 3 };
        let none = |_: &str| 0;
        let settings = Settings::load(None).expect("valid defaults");
        let (readings, events) =
            (&settings.kafka.topics.temperature, &settings.kafka.topics.machine_events);
        assert_eq!(kept(|_| {}).expired(readings, &accounting, none), 0);
        let telemetry = kept(|settings| settings.maintenance.retention.telemetry = DAY);
        assert_eq!(telemetry.expired(readings, &accounting, none), 80);
        assert_eq!(telemetry.expired(events, &accounting, none), 0);
        assert_eq!(telemetry.expired("renamed", &accounting, none), 90);
        let there = |table: &str| if table == TELEMETRY { 50 } else { 0 };
        assert_eq!(telemetry.expired(readings, &accounting, there), 30);
        let letters = kept(|settings| settings.maintenance.retention.dead_letters = DAY);
        assert_eq!(letters.expired(readings, &accounting, none), 3);
        let of_letters = &settings.kafka.topics.dead_letters;
        assert_eq!(letters.expired(of_letters, &accounting, none), 83);
    }
}

//! Whether each record of a partition has its row: by its offset while there is one topic of that name, by counts in any case.
//!
//! Rows of a hub's partition have positions, which leave holes behind each message: there an offset counts as taken when a record of its
//! message has a row, and that no record of it is missing is known by the counts.

use std::collections::BTreeMap;

use aggregator_core::Accounting;
use aggregator_core::checkpoint::{SideTable, TopicPartition};
use aggregator_core::hub::offset_of;

use super::kept::Kept;
use super::offsets::OffsetSet;
use super::{RECORD_TABLES, Report};

/// Why records are left out.
pub(super) const EXPIRED: &str = "records without a row: the retention has removed old rows";
/// Why records are left out.
pub(super) const FORGOTTEN: &str = "records without a row: they were forgotten on request";
/// Why offsets of partitions are left out.
pub(super) const RENEWED: &str =
    "partitions whose topic was made anew or cut short: their rows are counted, offsets not";
/// Why offsets without a row are left out.
pub(super) const GAPS_EXPIRED: &str = "partitions with offsets without a row: the retention of machine_events may have removed what was told of them";

/// What is known of the rows of one partition.
#[derive(Debug, Default)]
pub(super) struct Seen {
    offsets: OffsetSet,
    /// Of a hub's partition: offsets of messages.
    messages: Option<OffsetSet>,
    rows: BTreeMap<&'static str, u64>,
    /// Rows with offsets that are still to come: the topic was another one then.
    rows_ahead: BTreeMap<&'static str, u64>,
    twice: u64,
    told_gaps: u64,
    is_told_renewed: bool,
    /// Rows that were deleted on request.
    forgotten: BTreeMap<String, u64>,
}

impl Seen {
    /// Of a partition of a hub.
    pub(super) fn of_hub() -> Self {
        Self { messages: Some(OffsetSet::default()), ..Self::default() }
    }

    /// Takes the row of a record of a partition that is read on from `next_offset`.
    pub(super) fn note(&mut self, table: &'static str, offset: i64, next_offset: i64) {
        if offset >= next_offset {
            *self.rows_ahead.entry(table).or_default() += 1;
            return;
        }
        *self.rows.entry(table).or_default() += 1;
        if !self.offsets.insert(offset) {
            self.twice += 1;
        }
        if let Some(messages) = &mut self.messages {
            messages.insert(offset_of(offset));
        }
    }

    /// Takes rows that were deleted on request.
    pub(super) fn note_forgotten(&mut self, table: &str, records: u64) {
        *self.forgotten.entry(table.to_owned()).or_default() += records;
    }

    /// Whether readings of the partition were deleted on request: windows over them cannot be counted anew.
    pub(super) fn has_forgotten(&self) -> bool {
        !self.forgotten.is_empty()
    }

    /// Takes a row that tells of records that Kafka lost.
    pub(super) fn note_gap(&mut self, records: u64) {
        self.told_gaps += records;
    }

    /// Takes a row that tells that the topic was made anew or cut short.
    pub(super) fn note_renewal(&mut self) {
        self.is_told_renewed = true;
    }

    /// Whether offsets name more than one record. The row that tells it may be older than the retention; no topic has more records
    /// than offsets.
    pub(super) fn is_renewed(&self, next_offset: i64, accounting: &Accounting) -> bool {
        let offsets = u64::try_from(next_offset).unwrap_or(0);
        self.is_told_renewed || accounting.records_in > offsets
    }

    /// Holds the rows against the counts of the state.
    pub(super) fn judge(
        &self,
        partition: &TopicPartition,
        next_offset: i64,
        accounting: &Accounting,
        kept: &Kept,
        report: &mut Report,
    ) {
        report.records_in += accounting.records_in;
        report.duplicates += accounting.duplicates;
        report.told_gaps += self.told_gaps;
        if accounting.imbalance() != 0 {
            report.differs(format!(
                "{partition}: the state's own counts do not add up: {accounting:?}"
            ));
        }
        let is_renewed = self.is_renewed(next_offset, accounting);
        if self.twice > 0 && !is_renewed {
            report.differs(format!("{partition}: {} records have more than one row", self.twice));
        }
        let rows_of = |table: &str| self.rows_of(table, is_renewed);
        let expired = kept.expired(&partition.topic, accounting, rows_of);
        report.leave_out(EXPIRED, expired);
        let forgotten: u64 = self.forgotten.values().sum();
        report.leave_out(FORGOTTEN, forgotten);
        let rows: u64 = if is_renewed {
            RECORD_TABLES.into_iter().map(rows_of).sum()
        } else {
            self.offsets.count() + forgotten
        };
        let expected = accounting.records_in.saturating_sub(accounting.duplicates);
        if rows + expired != expected {
            let hint = if rows + expired < expected {
                "; readings that were taken while lake.keeps-readings was off have none"
            } else {
                ""
            };
            report.differs(format!(
                "{partition}: {rows} records have rows, {expected} by the state (in {}, seen before {}, removed by the retention \
                 {expired}){hint}",
                accounting.records_in, accounting.duplicates
            ));
        }
        let late = rows_of(SideTable::LateReadings.as_str());
        let gone = kept.expired_of(SideTable::LateReadings.as_str(), accounting.late, late);
        if late + gone != accounting.late {
            report.differs(format!(
                "{partition}: {late} rows of late_readings, {} by the state",
                accounting.late
            ));
        }
        if is_renewed {
            report.leave_out(RENEWED, 1);
        } else {
            let explained = accounting.duplicates + self.told_gaps + expired + forgotten;
            self.judge_holes(partition, next_offset, explained, kept, report);
        }
    }

    fn rows_of(&self, table: &str, is_renewed: bool) -> u64 {
        let rows = self.rows.get(table).copied().unwrap_or(0);
        let ahead = self.rows_ahead.get(table).filter(|_| is_renewed);
        let forgotten = self.forgotten.get(table).copied().unwrap_or(0);
        rows + ahead.copied().unwrap_or(0) + forgotten
    }

    fn judge_holes(
        &self,
        partition: &TopicPartition,
        next_offset: i64,
        explained: u64,
        kept: &Kept,
        report: &mut Report,
    ) {
        let (offsets, next_offset) = match &self.messages {
            None => (&self.offsets, next_offset),
            Some(messages) => (messages, offset_of(next_offset)),
        };
        let Some(first) = offsets.first() else { return };
        let there = offsets.count_within(first, next_offset);
        let missing = u64::try_from(next_offset - first).unwrap_or(0).saturating_sub(there);
        if missing <= explained {
            return;
        }
        if kept.is_shortened(SideTable::MachineEvents.as_str()) {
            return report.leave_out(GAPS_EXPIRED, 1);
        }
        report.differs(format!(
            "{partition}: {missing} offsets from {first} to {} have no row, {explained} are explained by repeats, told gaps and the retention \
             (control records of transactional producers have offsets, too)",
            next_offset - 1
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aggregator_core::ProcessingTime;
    use aggregator_core::hub::position;

    use super::*;
    use crate::config::Settings;
    use crate::sink::rows::TELEMETRY;

    fn settings() -> Settings {
        Settings::load(None).expect("valid defaults")
    }

    /// Judges a partition of readings. Gives what differs and what is left out.
    fn judge(
        seen: &Seen,
        next_offset: i64,
        accounting: &Accounting,
        settings: &Settings,
    ) -> (Vec<String>, Vec<(&'static str, u64)>) {
        let mut report = Report { shown_max: 99, ..Report::default() };
        let topic = settings.kafka.topics.temperature.clone();
        let partition = TopicPartition { topic, partition: 0 };
        let kept = Kept::new(settings, ProcessingTime::from_micros(1_772_352_930_000_000));
        seen.judge(&partition, next_offset, accounting, &kept, &mut report);
        (report.shown, report.left_out.into_iter().collect())
    }

    fn readings(offsets: impl Iterator<Item = i64>, next_offset: i64) -> Seen {
        let mut seen = Seen::default();
        offsets.for_each(|offset| seen.note(TELEMETRY, offset, next_offset));
        seen
    }

    fn counted(counted: u64) -> Accounting {
        Accounting { records_in: counted, counted, ..Accounting::default() }
    }

    #[test]
    fn rows_that_are_missing_doubled_or_unknown_to_the_state_are_told() {
        let settings = settings();
        let check = |offsets: &[i64], accounting: Accounting, expected: &[&str]| {
            let seen = readings(offsets.iter().copied(), 10);
            let (shown, left_out) = judge(&seen, 10, &accounting, &settings);
            assert!(left_out.is_empty(), "{left_out:?}");
            assert_eq!(shown.len(), expected.len(), "{shown:?}");
            for (text, part) in shown.iter().zip(expected) {
                assert!(text.contains(part), "{part}: {shown:?}");
            }
        };
        check(&[6, 7, 8, 9], counted(4), &[]);
        check(&[6, 7, 8, 9, 9], counted(4), &["1 records have more than one row"]);
        check(&[6, 7, 8, 9], counted(3), &["4 records have rows, 3 by the state"]);
        check(&[6, 7, 9], counted(4), &["lake.keeps-readings", "1 offsets from 6 to 9"]);
        check(&[6, 7, 9], counted(3), &["1 offsets from 6 to 9"]);
        let odd = Accounting { records_in: 5, ..counted(4) };
        check(&[5, 6, 7, 8, 9], odd, &["do not add up"]);
        let late = Accounting { records_in: 4, counted: 3, late: 1, ..Accounting::default() };
        check(&[6, 7, 8, 9], late, &["0 rows of late_readings, 1 by the state"]);
    }

    #[test]
    fn records_of_a_hub_have_positions_and_messages_no_holes() {
        let settings = settings();
        let check = |rows: &[(i64, usize)], accounting: Accounting, expected: &[&str]| {
            let (mut seen, next) = (Seen::of_hub(), position(10, 0));
            for (offset, place) in rows {
                seen.note(TELEMETRY, position(*offset, *place), next);
            }
            let (shown, left_out) = judge(&seen, next, &accounting, &settings);
            assert!(left_out.is_empty(), "{left_out:?}");
            assert_eq!(shown.len(), expected.len(), "{shown:?}");
            for (text, part) in shown.iter().zip(expected) {
                assert!(text.contains(part), "{part}: {shown:?}");
            }
        };
        let rows = [(7, 0), (7, 1), (7, 2), (8, 0), (9, 0), (9, 1)];
        check(&rows, counted(6), &[]);
        // A record of a message, and the only one of another.
        check(&[&rows[..2], &rows[3..]].concat(), counted(6), &["5 records have rows, 6 by"]);
        let without = [&rows[..3], &rows[4..]].concat();
        check(&without, counted(5), &["1 offsets from 7 to 9 have no row"]);
        let repeat = Accounting { records_in: 7, duplicates: 2, ..counted(5) };
        check(&without, repeat, &[]);
        check(&[&rows[..], &[(9, 1)]].concat(), counted(6), &["1 records have more than one row"]);
    }

    #[test]
    fn what_the_retention_of_one_table_explains_is_no_loss_of_another() {
        let mut settings = settings();
        settings.maintenance.retention.telemetry = Duration::from_secs(86_400);
        let seen = readings(6..10, 10);
        assert_eq!(judge(&seen, 10, &counted(9), &settings), (Vec::new(), vec![(EXPIRED, 5)]));
        let with_letter =
            Accounting { records_in: 10, counted: 9, dead_letters: 1, ..Accounting::default() };
        let (shown, left_out) = judge(&seen, 10, &with_letter, &settings);
        assert_eq!((shown.len(), left_out), (1, vec![(EXPIRED, 5)]), "{shown:?}");
        assert!(shown[0].contains("4 records have rows, 10 by the state"), "{shown:?}");
        let (shown, _) = judge(&readings(1..10, 10), 10, &counted(8), &settings);
        assert!(shown[0].contains("9 records have rows, 8 by the state"), "{shown:?}");
        let (shown, _) = judge(&readings((6..10).chain([9]), 10), 10, &counted(9), &settings);
        assert!(shown[0].contains("more than one row"), "{shown:?}");
    }

    #[test]
    fn rows_that_were_forgotten_on_request_are_no_loss() {
        let settings = settings();
        let mut seen = readings([1, 2, 8, 9].into_iter(), 10);
        assert_eq!(judge(&seen, 10, &counted(9), &settings).0.len(), 2);
        seen.note_forgotten(TELEMETRY, 5);
        let left_out = (Vec::new(), vec![(FORGOTTEN, 5)]);
        assert_eq!(judge(&seen, 10, &counted(9), &settings), left_out);
        // More than was lost would hide that something is there twice.
        seen.note_forgotten(TELEMETRY, 1);
        assert_eq!(judge(&seen, 10, &counted(9), &settings).0.len(), 1);
        let late = Accounting { records_in: 4, counted: 3, late: 1, ..Accounting::default() };
        let mut seen = readings(7..10, 10);
        seen.note_forgotten(SideTable::LateReadings.as_str(), 1);
        assert_eq!(judge(&seen, 10, &late, &settings).0, Vec::<String>::new());
    }

    #[test]
    fn holes_may_be_gaps_that_were_told_in_rows_that_are_removed() {
        let mut settings = settings();
        let mut seen = readings([1, 2, 8, 9].into_iter(), 10);
        assert_eq!(judge(&seen, 10, &counted(4), &settings).0.len(), 1);
        settings.maintenance.retention.machine_events = Duration::from_secs(86_400);
        let left_out = judge(&seen, 10, &counted(4), &settings);
        assert_eq!(left_out, (Vec::new(), vec![(GAPS_EXPIRED, 1)]));
        seen.note_gap(5);
        assert_eq!(judge(&seen, 10, &counted(4), &settings), (Vec::new(), Vec::new()));
    }

    #[test]
    fn of_a_topic_that_was_made_anew_rows_are_counted_over_all_its_lives() {
        let settings = settings();
        // 4 to 19 first, then 0 to 9.
        let mut seen = readings((4..20).chain(0..10), 10);
        let equal: (Vec<String>, Vec<(&str, u64)>) = (Vec::new(), vec![(RENEWED, 1)]);
        assert_eq!(judge(&seen, 10, &counted(26), &settings), equal, "more records than offsets");
        for (records, rows) in [(25, 26), (27, 26)] {
            let (shown, _) = judge(&seen, 10, &counted(records), &settings);
            let expected = format!("{rows} records have rows, {records} by the state");
            assert!(shown.len() == 1 && shown[0].contains(&expected), "{shown:?}");
        }
        let late = Accounting { records_in: 26, counted: 25, late: 1, ..Accounting::default() };
        assert_eq!(judge(&seen, 10, &late, &settings).0.len(), 1, "no late row");
        // Records of the first life from 1004 on, then 1000 to 1009: only a row tells it.
        seen = readings((1_004..1_020).chain(1_000..1_010), 1_010);
        let (shown, left_out) = judge(&seen, 1_010, &counted(26), &settings);
        assert_eq!((shown.len(), left_out.len()), (2, 0), "{shown:?}");
        seen.note_renewal();
        assert_eq!(judge(&seen, 1_010, &counted(26), &settings), equal);
    }
}

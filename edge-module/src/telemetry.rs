//! Logging and metrics: names once, here.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{LogFormat, Telemetry};
use crate::log_output::LogOutput;

/// MQTT messages received, by `session`.
pub const MQTT_MESSAGES: &str = "mqtt_messages_total";
/// Connections lost or refused, by `session`.
pub const MQTT_DISCONNECTS: &str = "mqtt_disconnects_total";
/// Kept sessions begun anew because of a message over the packet limit.
pub const MQTT_SESSIONS_DISCARDED: &str = "mqtt_sessions_discarded_total";
/// Input refused, by `reason`.
pub const INPUT_REFUSED: &str = "input_refused_total";
/// JSON fields that this version does not know.
pub const INPUT_UNKNOWN_FIELDS: &str = "input_unknown_fields_total";
/// Messages that the broker delivered again after they had been journalled.
pub const INPUT_REDELIVERED: &str = "input_redelivered_total";
/// Input of sensors that a rule names, on a topic of no machine under protection: recorded, not judged.
pub const INPUT_ASTRAY: &str = "input_astray_total";
/// Log lines that could not be written.
pub const LOG_LINES_LOST: &str = "log_lines_lost_total";
/// Panics after which a task was started again.
pub const TASK_PANICS: &str = "task_panics_total";
/// Readings taken in, scalars and windows.
pub const READINGS: &str = "readings_total";
/// Readings held back by the dead band.
pub const READINGS_FILTERED: &str = "readings_filtered_total";
/// Records that filtering saved, by `reason`: deadband or aggregation.
pub const SAVED_RECORDS: &str = "readings_saved_total";
/// Bytes of records that filtering saved, by `reason`.
pub const SAVED_BYTES: &str = "readings_saved_bytes_total";
/// Pieces of waveform snapshots handed to the journal.
pub const WAVEFORM_PIECES: &str = "waveform_pieces_total";
/// Snapshots not taken, by `reason`.
pub const WAVEFORM_SNAPSHOTS_DROPPED: &str = "waveform_snapshots_dropped_total";
/// Blocks that no ring had room for.
pub const WAVEFORM_BLOCKS_NOT_KEPT: &str = "waveform_blocks_not_kept_total";
/// Samples over a snapshot's limits.
pub const WAVEFORM_SAMPLES_CUT: &str = "waveform_samples_cut_total";
/// Settings read again, by `result`: changed or refused.
pub const SETTINGS_RELOADS: &str = "settings_reloads_total";
/// Each limit of the settings, by `name`: the key's path. Durations in seconds.
pub const LIMIT: &str = "edge_limit";
/// What is in use of a limit, by `name`, where that is known.
pub const IN_USE: &str = "edge_in_use";
/// Vibration windows judged by the stop path.
pub const PROTECTION_WINDOWS: &str = "protection_windows_total";
/// Samples that fell out of a window because of a gap, an overlap or a rate change.
pub const VIBRATION_SAMPLES_DISCARDED: &str = "vibration_samples_discarded_total";
/// Windows that the model could not score, by `reason`.
pub const SCORE_FAILURES: &str = "score_failures_total";
/// Trips, by `cause`.
pub const INTERLOCK_TRIPS: &str = "interlock_trips_total";
/// Stops that were not confirmed in time.
pub const INTERLOCK_STOPS_NOT_CONFIRMED: &str = "interlock_stops_not_confirmed_total";
/// Machines whose latch is set.
pub const INTERLOCK_TRIPPED: &str = "interlock_tripped_machines";
/// Violations that did not stop a machine, by `reason`.
pub const INTERLOCK_SUPPRESSED: &str = "interlock_trips_suppressed_total";
/// Alarms raised, by `cause`.
pub const INTERLOCK_ALARMS: &str = "interlock_alarms_total";
/// Rules that people took out of force.
pub const INTERLOCK_SHELVED: &str = "interlock_shelved_rules";
/// Machines in dry run.
pub const INTERLOCK_DRY_RUN: &str = "interlock_dry_run_machines";
/// Sensor faults raised, by `kind`.
pub const SENSOR_FAULTS: &str = "sensor_faults_total";
/// Sensor faults that are present.
pub const SENSOR_FAULTS_PRESENT: &str = "sensor_faults_present";
/// Last sample received to stop command written, in seconds.
pub const STOP_COMMAND_LATENCY: &str = "stop_command_latency_seconds";
/// Last sample received to standstill confirmed, in seconds.
pub const STOP_CONFIRMATION_LATENCY: &str = "stop_confirmation_latency_seconds";
/// Message received to judged, in seconds.
pub const PROTECTION_LATENCY: &str = "protection_latency_seconds";
/// Stops ordered, by `kind` of path.
pub const ACTUATOR_COMMANDS: &str = "actuator_commands_total";
/// Stops that a path did not deliver, by `kind` and `reason`.
pub const ACTUATOR_FAILURES: &str = "actuator_failures_total";
/// Stop on the socket to the device's answer (modbus-tcp) or the machine's first report (mqtt), in seconds, by `kind`.
pub const ACTUATOR_ROUND_TRIP: &str = "actuator_round_trip_seconds";
/// Messages that were judged by their limits or extremes alone because too many waited, by `kind`: block, array.
pub const PROTECTION_SHED: &str = "protection_shed_messages_total";
/// Blocks and arrays that wait to be judged.
pub const PROTECTION_BACKLOG: &str = "protection_backlog";
/// Machine events dropped because the journal did not take them.
pub const EVENTS_DROPPED: &str = "machine_events_dropped_total";
/// Records durable in the journal, by `lane`.
pub const JOURNAL_RECORDS: &str = "journal_records_total";
/// Bytes of the journal on disk.
pub const JOURNAL_BYTES: &str = "journal_disk_bytes";
/// Records lost, by `lane` and `cause`.
pub const JOURNAL_LOST: &str = "journal_lost_records_total";
/// Appends that failed and were tried again.
pub const JOURNAL_FAILURES: &str = "journal_append_failures_total";
/// From taking a group to its fsync, in seconds.
pub const JOURNAL_APPEND_LATENCY: &str = "journal_append_latency_seconds";
/// Records acknowledged by Kafka, by `lane`.
pub const KAFKA_DELIVERED: &str = "kafka_delivered_records_total";
/// Deliveries that failed, by `disposition`.
pub const KAFKA_FAILURES: &str = "kafka_delivery_failures_total";
/// Records journalled and not yet delivered, upper bound, by `lane`.
pub const OUTBOX_RECORDS: &str = "outbox_records";
/// Age of the oldest record not yet delivered.
pub const OUTBOX_OLDEST_AGE: &str = "outbox_oldest_record_age_seconds";

/// Labels of a counter, with the values that are there from the beginning.
type Labels = &'static [(&'static str, &'static [&'static str])];

const LANES: (&str, &[&str]) = ("lane", &["events", "readings", "waveforms", "dead-letters"]);
const PATH_KINDS: (&str, &[&str]) = ("kind", &["mqtt", "modbus-tcp"]);
const SAVINGS: (&str, &[&str]) = ("reason", &["deadband", "aggregation"]);
const CAUSES: (&str, &[&str]) =
    ("cause", &["limit", "score", "silence", "sensor-fault", "unknown-latch", "restart"]);

/// Every counter. Each shows as 0 before it counts, so that an alarm on its rise sees the first rise, too. Values of `reason` and
/// `kind` that are not here come with what they count.
pub const COUNTERS: [(&str, Labels); 35] = [
    (MQTT_MESSAGES, &[("session", &["protection", "recording"])]),
    (MQTT_DISCONNECTS, &[("session", &["protection", "recording", "actuator"])]),
    (MQTT_SESSIONS_DISCARDED, &[]),
    (
        INPUT_REFUSED,
        &[("reason", &["json", "protobuf", "too-large", "machine-report", "shelving"])],
    ),
    (INPUT_UNKNOWN_FIELDS, &[]),
    (INPUT_REDELIVERED, &[]),
    (INPUT_ASTRAY, &[]),
    (READINGS, &[]),
    (READINGS_FILTERED, &[]),
    (SAVED_RECORDS, &[SAVINGS]),
    (SAVED_BYTES, &[SAVINGS]),
    (WAVEFORM_PIECES, &[]),
    (WAVEFORM_SNAPSHOTS_DROPPED, &[("reason", &["queue-full"])]),
    (WAVEFORM_BLOCKS_NOT_KEPT, &[]),
    (WAVEFORM_SAMPLES_CUT, &[]),
    (SETTINGS_RELOADS, &[("result", &["changed", "refused"])]),
    (PROTECTION_WINDOWS, &[]),
    (VIBRATION_SAMPLES_DISCARDED, &[]),
    (SCORE_FAILURES, &[("reason", &["shape", "inference"])]),
    (INTERLOCK_TRIPS, &[CAUSES]),
    (INTERLOCK_STOPS_NOT_CONFIRMED, &[]),
    (INTERLOCK_SUPPRESSED, &[("reason", &["startup", "shelved", "dry-run"])]),
    (INTERLOCK_ALARMS, &[CAUSES]),
    (SENSOR_FAULTS, &[("kind", &["silent", "out-of-range", "frozen", "value-not-finite"])]),
    (ACTUATOR_COMMANDS, &[PATH_KINDS]),
    (ACTUATOR_FAILURES, &[PATH_KINDS, ("reason", &["delivery", "queue-full", "not-ready"])]),
    (PROTECTION_SHED, &[("kind", &["block", "array"])]),
    (EVENTS_DROPPED, &[]),
    (JOURNAL_RECORDS, &[LANES]),
    (JOURNAL_LOST, &[LANES, ("cause", &["evicted-cap", "evicted-disk", "damaged"])]),
    (JOURNAL_FAILURES, &[]),
    (KAFKA_DELIVERED, &[LANES]),
    (KAFKA_FAILURES, &[("disposition", &["retry", "dead-letter"])]),
    (TASK_PANICS, &[("task", &["journal", "forwarder"])]),
    (LOG_LINES_LOST, &[]),
];

const LATENCY_BUCKETS_SECONDS: [f64; 14] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
    5.0,
];

/// Changes the filter of the log while the program runs.
pub struct LogFilter(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogFilter {
    /// Puts another filter in force.
    ///
    /// # Errors
    /// The text is no filter, or logging has ended.
    pub fn set(&self, filter: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        (self.0)(EnvFilter::try_new(filter)?)?;
        Ok(())
    }
}

/// Starts logging to the standard error.
///
/// # Errors
/// Logging was started before, or the filter is none.
pub fn start_logging(
    settings: &Telemetry,
) -> Result<LogFilter, Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(&settings.filter)?;
    let builder =
        tracing_subscriber::fmt().with_writer(LogOutput::start()?).log_internal_errors(false);
    match settings.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(false).with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init()?;
            Ok(LogFilter(Box::new(move |filter| handle.reload(filter))))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_env_filter(filter);
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init()?;
            Ok(LogFilter(Box::new(move |filter| handle.reload(filter))))
        }
    }
}

/// Starts collecting metrics. Counters show as 0 from the beginning.
///
/// # Errors
/// Metrics were started before.
pub fn start_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS_SECONDS)?
        .install_recorder()?;
    show_counters();
    metrics::describe_gauge!(
        OUTBOX_RECORDS,
        "Sequences not yet delivered, by lane: an upper bound of its records, since lanes share sequences; 0 means none."
    );
    Ok(handle)
}

fn show_counters() {
    for (name, labels) in COUNTERS {
        let mut series = vec![Vec::new()];
        for (label, values) in labels {
            let with = |labels: &Vec<(&'static str, &'static str)>| {
                let labels = labels.clone();
                values.iter().map(move |value| [labels.clone(), vec![(*label, *value)]].concat())
            };
            series = series.iter().flat_map(with).collect();
        }
        for labels in series {
            metrics::counter!(name, &labels).absolute(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_shows_as_0_with_its_labels_alone() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, show_counters);
        let shown = recorder.handle().render();
        let series: Vec<&str> = shown.lines().filter(|line| !line.starts_with('#')).collect();
        for (name, labels) in COUNTERS {
            let of_name = |line: &&&str| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            let found: Vec<_> = series.iter().filter(of_name).collect();
            let expected: usize = labels.iter().map(|(_, values)| values.len()).product();
            assert_eq!(found.len(), expected, "{name}: {found:?}");
            let is_whole =
                |line: &str| labels.iter().all(|(label, _)| line.contains(&format!("{label}=\"")));
            assert!(found.iter().all(|line| is_whole(line) && line.ends_with(" 0")), "{found:?}");
        }
        let lost = "journal_lost_records_total{lane=\"readings\",cause=\"evicted-cap\"} 0";
        assert!(series.contains(&lost), "{shown}");
    }
}

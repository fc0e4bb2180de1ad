//! Logging and metrics: names once, here.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{LogFormat, Telemetry};
use crate::log_output::LogOutput;

/// Names of metrics, each with the text that `/metrics` tells of it.
macro_rules! metrics_of_this_program {
    ($($(#[doc = $text:literal])+ $name:ident = $metric:literal;)+) => {
        $($(#[doc = $text])+ pub const $name: &str = $metric;)+
        const DESCRIPTIONS: &[(&str, &[&str])] = &[$(($metric, &[$($text),+])),+];
    };
}

metrics_of_this_program! {
    /// MQTT messages received, by `session`.
    MQTT_MESSAGES = "mqtt_messages_total";
    /// Connections lost or refused, by `session`.
    MQTT_DISCONNECTS = "mqtt_disconnects_total";
    /// Kept sessions begun anew because of a message over the packet limit.
    MQTT_SESSIONS_DISCARDED = "mqtt_sessions_discarded_total";
    /// Input refused, by `reason`.
    INPUT_REFUSED = "input_refused_total";
    /// JSON fields that this version does not know.
    INPUT_UNKNOWN_FIELDS = "input_unknown_fields_total";
    /// Messages that the broker delivered again after they had been journalled.
    INPUT_REDELIVERED = "input_redelivered_total";
    /// Input of sensors that a rule names, on a topic of no machine under protection: recorded, not judged.
    INPUT_ASTRAY = "input_astray_total";
    /// Log lines that could not be written.
    LOG_LINES_LOST = "log_lines_lost_total";
    /// Panics after which a task was started again.
    TASK_PANICS = "task_panics_total";
    /// Readings taken in, scalars and windows.
    READINGS = "readings_total";
    /// Readings held back by the dead band.
    READINGS_FILTERED = "readings_filtered_total";
    /// Records that filtering saved, by `reason`: deadband or aggregation.
    SAVED_RECORDS = "readings_saved_total";
    /// Bytes of records that filtering saved, by `reason`.
    SAVED_BYTES = "readings_saved_bytes_total";
    /// Pieces of waveform snapshots handed to the journal.
    WAVEFORM_PIECES = "waveform_pieces_total";
    /// Snapshots not taken, by `reason`.
    WAVEFORM_SNAPSHOTS_DROPPED = "waveform_snapshots_dropped_total";
    /// Blocks that no ring had room for.
    WAVEFORM_BLOCKS_NOT_KEPT = "waveform_blocks_not_kept_total";
    /// Samples over a snapshot's limits.
    WAVEFORM_SAMPLES_CUT = "waveform_samples_cut_total";
    /// Settings read again, by `result`: changed or refused.
    SETTINGS_RELOADS = "settings_reloads_total";
    /// Each limit of the settings, by `name`: the key's path. Durations in seconds.
    LIMIT = "edge_limit";
    /// What is in use of a limit, by `name`, where that is known.
    IN_USE = "edge_in_use";
    /// Vibration windows judged by the stop path.
    PROTECTION_WINDOWS = "protection_windows_total";
    /// Samples that fell out of a window because of a gap, an overlap or a rate change.
    VIBRATION_SAMPLES_DISCARDED = "vibration_samples_discarded_total";
    /// Windows that the model did not score, by `reason`: another shape than its own, no answer, or a step of the sensor's rest level.
    SCORE_FAILURES = "score_failures_total";
    /// Samples of a window to its score, in seconds.
    SCORE_LATENCY = "score_latency_seconds";
    /// Population stability index of a sensor's scores against those that were learnt of its machine, by `machine_id`, `sensor_id` and operating `condition`: below
    /// 0.1 as learnt, above 0.25 much changed. Only of machines that were learnt.
    SCORE_DRIFT = "score_drift_index";
    /// Models that came into force while the module ran, or were refused, by `result`.
    MODEL_CHANGES = "model_changes_total";
    /// Trips, by `cause`.
    INTERLOCK_TRIPS = "interlock_trips_total";
    /// Stops that were not confirmed in time.
    INTERLOCK_STOPS_NOT_CONFIRMED = "interlock_stops_not_confirmed_total";
    /// Machines whose latch is set.
    INTERLOCK_TRIPPED = "interlock_tripped_machines";
    /// Violations that did not stop a machine, by `reason`.
    INTERLOCK_SUPPRESSED = "interlock_trips_suppressed_total";
    /// Alarms raised, by `cause`.
    INTERLOCK_ALARMS = "interlock_alarms_total";
    /// Rules that people took out of force.
    INTERLOCK_SHELVED = "interlock_shelved_rules";
    /// Machines in dry run.
    INTERLOCK_DRY_RUN = "interlock_dry_run_machines";
    /// Sensor faults raised, by `kind`.
    SENSOR_FAULTS = "sensor_faults_total";
    /// Sensor faults that are present.
    SENSOR_FAULTS_PRESENT = "sensor_faults_present";
    /// Last sample received to stop command written, in seconds.
    STOP_COMMAND_LATENCY = "stop_command_latency_seconds";
    /// Last sample received to standstill confirmed, in seconds.
    STOP_CONFIRMATION_LATENCY = "stop_confirmation_latency_seconds";
    /// Message received to judged, in seconds.
    PROTECTION_LATENCY = "protection_latency_seconds";
    /// Stops ordered, by `kind` of path.
    ACTUATOR_COMMANDS = "actuator_commands_total";
    /// Stops that a path did not deliver, by `kind` and `reason`.
    ACTUATOR_FAILURES = "actuator_failures_total";
    /// Stop on the socket to the device's answer (modbus-tcp) or the machine's first report (mqtt), in seconds, by `kind`.
    ACTUATOR_ROUND_TRIP = "actuator_round_trip_seconds";
    /// Messages that were judged by their limits or extremes alone because too many waited, by `kind`: block, array.
    PROTECTION_SHED = "protection_shed_messages_total";
    /// Blocks and arrays that wait to be judged.
    PROTECTION_BACKLOG = "protection_backlog";
    /// Machine events dropped because the journal did not take them.
    EVENTS_DROPPED = "machine_events_dropped_total";
    /// Records durable in the journal, by `lane`.
    JOURNAL_RECORDS = "journal_records_total";
    /// Bytes of the journal on disk.
    JOURNAL_BYTES = "journal_disk_bytes";
    /// Records lost, by `lane` and `cause`.
    JOURNAL_LOST = "journal_lost_records_total";
    /// Appends that failed and were tried again.
    JOURNAL_FAILURES = "journal_append_failures_total";
    /// From taking a group to its fsync, in seconds.
    JOURNAL_APPEND_LATENCY = "journal_append_latency_seconds";
    /// Records acknowledged by Kafka, by `lane`.
    KAFKA_DELIVERED = "kafka_delivered_records_total";
    /// Deliveries that failed, by `disposition`.
    KAFKA_FAILURES = "kafka_delivery_failures_total";
    /// Records acknowledged by Kafka or the hub, by `upstream` and `lane`.
    UPSTREAM_DELIVERED = "upstream_delivered_records_total";
    /// Changes of the way that records leave, by `to`: where they go from then on.
    UPSTREAM_SWITCHES = "upstream_switches_total";
    /// 1 for the way that records leave, by `upstream`: kafka or hub.
    UPSTREAM_ACTIVE = "upstream_active";
    /// Messages of records handed to the link with the hub.
    HUB_MESSAGES = "hub_telemetry_messages_total";
    /// The same in pieces of 4 KiB, as a hub counts its daily quota.
    HUB_PIECES = "hub_telemetry_message_pieces_total";
    /// Messages whose connection ended before the hub had acknowledged them: their records are sent again.
    HUB_MESSAGES_LOST = "hub_telemetry_lost_messages_total";
    /// Records journalled and not yet delivered, upper bound, by `lane`.
    OUTBOX_RECORDS = "outbox_records";
    /// Age of the oldest record not yet delivered.
    OUTBOX_OLDEST_AGE = "outbox_oldest_record_age_seconds";
    /// Input of sensors that rules name and that no rule judges, by `reason`: historical, or a quantity that no rule looks at.
    INPUT_NOT_JUDGED = "input_not_judged_total";
    /// 1 while a part is ready, by `part`, as `/readyz` says it; kafka is not needed for that.
    PART_READY = "part_ready";
    /// Connections to the hub that were accepted.
    HUB_CONNECTS = "hub_connects_total";
    /// Connections to the hub that ended or were not made, by `reason`: lost, or refused.
    HUB_DISCONNECTS = "hub_disconnects_total";
    /// 1 while the hub is connected. Absent without a link.
    HUB_CONNECTED = "hub_connected";
    /// Seconds until the certificate of the device ends; below zero when it has. Absent without one.
    HUB_CERTIFICATE_EXPIRES = "hub_certificate_expires_seconds";
    /// Seconds by which this machine's clock is before the hub's, or before what its certificate allows; below zero when it is behind.
    /// Absent until it is known.
    HUB_CLOCK_SKEW = "hub_clock_skew_seconds";
    /// Registrations at the provisioning service, by `result`: assigned, or failed.
    HUB_REGISTRATIONS = "hub_registrations_total";
    /// What the hub sent or answered and could not be used, by `reason`.
    HUB_REFUSED = "hub_refused_total";
    /// Values of OPC nodes that the settings do not name.
    OPC_UNMAPPED = "opc_values_unmapped_total";
    /// Parts of OPC Publisher's messages that have no values, by `kind`.
    OPC_SKIPPED = "opc_parts_skipped_total";
    /// Direct methods called.
    HUB_METHODS = "hub_methods_total";
    /// 1 while a latch is set, by `machine_id`.
    MACHINE_TRIPPED = "interlock_machine_tripped";
    /// 1 while the stop of a tripped machine is not confirmed and its deadline has passed, by `machine_id`.
    MACHINE_NOT_CONFIRMED = "interlock_machine_stop_not_confirmed";
}

/// Labels of a counter, with the values that are there from the beginning.
type Labels = &'static [(&'static str, &'static [&'static str])];

const LANES: (&str, &[&str]) = ("lane", &["events", "readings", "waveforms", "dead-letters"]);
const PATH_KINDS: (&str, &[&str]) = ("kind", &["mqtt", "modbus-tcp"]);
const SAVINGS: (&str, &[&str]) = ("reason", &["deadband", "aggregation"]);
const CAUSES: (&str, &[&str]) = (
    "cause",
    &["limit", "score", "silence", "sensor-fault", "unknown-latch", "restart", "ordered"],
);

/// Every counter. Each shows as 0 before it counts, so that an alarm on its rise sees the first rise, too. Values of `reason` and
/// `kind` that are not here come with what they count.
pub const COUNTERS: [(&str, Labels); 49] = [
    (MQTT_MESSAGES, &[("session", &["protection", "recording", "hub"])]),
    (MQTT_DISCONNECTS, &[("session", &["protection", "recording", "actuator"])]),
    (MQTT_SESSIONS_DISCARDED, &[]),
    (
        INPUT_REFUSED,
        &[(
            "reason",
            &["json", "protobuf", "too-large", "machine-report", "reset", "shelving", "learn"],
        )],
    ),
    (INPUT_UNKNOWN_FIELDS, &[]),
    (INPUT_REDELIVERED, &[]),
    (INPUT_ASTRAY, &[]),
    (INPUT_NOT_JUDGED, &[("reason", &["historical", "quantity"])]),
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
    (SCORE_FAILURES, &[("reason", &["shape", "inference", "step"])]),
    (MODEL_CHANGES, &[("result", &["changed", "refused"])]),
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
    (UPSTREAM_DELIVERED, &[("upstream", &["kafka", "hub"]), LANES]),
    (UPSTREAM_SWITCHES, &[("to", &["kafka", "hub"])]),
    (HUB_MESSAGES, &[]),
    (HUB_PIECES, &[]),
    (HUB_MESSAGES_LOST, &[]),
    (TASK_PANICS, &[("task", &["journal", "forwarder"])]),
    (LOG_LINES_LOST, &[]),
    (HUB_CONNECTS, &[]),
    (HUB_REGISTRATIONS, &[("result", &["assigned", "failed"])]),
    (HUB_DISCONNECTS, &[("reason", &["lost", "refused"])]),
    (HUB_REFUSED, &[("reason", &["twin", "report", "topic", "input", "input-queue", "message"])]),
    (OPC_UNMAPPED, &[]),
    (OPC_SKIPPED, &[("kind", &["metadata", "keep-alive", "event", "other"])]),
    (HUB_METHODS, &[]),
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
    describe();
    Ok(handle)
}

fn describe() {
    for (name, lines) in DESCRIPTIONS {
        let text = lines.concat().trim().to_owned();
        if name.ends_with("_total") {
            metrics::describe_counter!(*name, text);
        } else if name.ends_with("latency_seconds") {
            metrics::describe_histogram!(*name, text);
        } else {
            metrics::describe_gauge!(*name, text);
        }
    }
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
    fn each_counter_says_what_it_counts() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            show_counters();
        });
        let shown = recorder.handle().render();
        for (name, _) in COUNTERS {
            let help = shown.lines().find(|line| line.starts_with(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|line| line.len() > name.len() + 20), "{name}: {help:?}");
        }
    }

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

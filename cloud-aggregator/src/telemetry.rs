//! Logging and the names of all metrics.

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Telemetry};
use crate::outcomes::names as outcome_names;
use crate::sink::webhook::target_names;

/// Metric names. `<domain>_<what>_<unit>[_total]`.
pub mod names {
    /// Log lines that could not be written.
    pub const LOG_LINES_LOST_TOTAL: &str = "aggregator_log_lines_lost_total";
    /// Records taken from Kafka, label `kind`.
    pub const RECORDS_IN_TOTAL: &str = "aggregator_records_in_total";
    /// What became of them, label `disposition`: counted, late, duplicate, dead-letter.
    pub const RECORDS_TOTAL: &str = "aggregator_records_total";
    /// Dead letters, label `reason`.
    pub const DEAD_LETTERS_TOTAL: &str = "aggregator_dead_letters_total";
    /// Fields of readings that this version does not know.
    pub const UNKNOWN_FIELDS_TOTAL: &str = "aggregator_unknown_fields_total";
    /// Records that Kafka no longer had, label `cause`.
    pub const KAFKA_GAP_RECORDS_TOTAL: &str = "aggregator_kafka_gap_records_total";
    /// Errors of the consumer.
    pub const KAFKA_ERRORS_TOTAL: &str = "aggregator_kafka_errors_total";
    /// Records of a partition behind those that the lake holds, by `topic` and `partition`.
    pub const LAG_RECORDS: &str = "aggregator_lag_records";
    /// Partitions of this instance.
    pub const PARTITIONS: &str = "aggregator_partitions";
    /// Assignments begun: rebalances and restarts after a failure.
    pub const ASSIGNMENTS_TOTAL: &str = "aggregator_assignments_total";
    /// Epochs committed.
    pub const EPOCHS_TOTAL: &str = "aggregator_epochs_total";
    /// Duration of an epoch's commits.
    pub const EPOCH_COMMIT_SECONDS: &str = "aggregator_epoch_commit_seconds";
    /// Failures of the storage; each repeats the work since the last epoch.
    pub const LAKE_FAILURES_TOTAL: &str = "aggregator_lake_failures_total";
    /// Epochs that were void because another instance was faster, or because the answer to their commit was lost.
    pub const LOST_RACES_TOTAL: &str = "aggregator_lost_races_total";
    /// Rows committed, label `table`.
    pub const ROWS_TOTAL: &str = "aggregator_rows_total";
    /// Sensors known.
    pub const SENSORS: &str = "aggregator_sensors";
    /// Windows held.
    pub const WINDOWS: &str = "aggregator_windows";
    /// High-water marks forgotten at a limit.
    pub const MARKS_EVICTED: &str = "aggregator_marks_evicted";
    /// Records in less counted, late, duplicate and dead letters, over the life of this instance's partitions: 0.
    pub const ACCOUNTING_IMBALANCE_RECORDS: &str = "aggregator_accounting_imbalance_records";
    /// Gaps of devices that are open.
    pub const DEVICE_GAPS_OPEN: &str = "aggregator_device_gaps_open";
    /// Records that are missing in them.
    pub const DEVICE_GAP_RECORDS: &str = "aggregator_device_gap_records";
    /// Records that devices have journalled and not delivered, by their last ledgers.
    pub const DEVICE_OWED_RECORDS: &str = "aggregator_device_owed_records";
    /// Records of which nobody can tell whether they are missing, because `gaps.ranges-max` was reached.
    pub const DEVICE_UNJUDGED_RECORDS: &str = "aggregator_device_unjudged_records";
    /// Records that devices told as lost, label `cause`.
    pub const DEVICE_LOST_RECORDS_TOTAL: &str = "aggregator_device_lost_records_total";
    /// Age of the oldest record not committed yet.
    pub const OLDEST_UNCOMMITTED_AGE_SECONDS: &str = "aggregator_oldest_uncommitted_age_seconds";
    /// Settings read again, label `result`: changed, same, refused.
    pub const SETTINGS_RELOADS_TOTAL: &str = "aggregator_settings_reloads_total";
    /// Machines known to rules that count by machine.
    pub const MACHINES: &str = "aggregator_machines";
    /// Matches of rules by machine that are in no window, label `reason`: without-machine, behind-machine.
    pub const UNMATCHED_READINGS: &str = "aggregator_unmatched_readings";
    /// Alerts decided.
    pub const ALERTS_TOTAL: &str = "aggregator_alerts_total";
    /// Files of a table, as of the last maintenance.
    pub const TABLE_FILES: &str = "aggregator_table_files";
    /// Bytes of these files.
    pub const TABLE_BYTES: &str = "aggregator_table_bytes";
    /// Rounds of maintenance, label `outcome`: done, held-elsewhere, failed.
    pub const MAINTENANCE_ROUNDS_TOTAL: &str = "aggregator_maintenance_rounds_total";
    /// Time since this instance or another one last ended a round without a fault, as far as this one knows.
    pub const MAINTENANCE_LAST_SUCCESS_AGE_SECONDS: &str =
        "aggregator_maintenance_last_success_age_seconds";
    /// Duration of the maintenance of a table, label `table`.
    pub const MAINTENANCE_SECONDS: &str = "aggregator_maintenance_seconds";
    /// Failures, label `table`.
    pub const MAINTENANCE_FAILURES_TOTAL: &str = "aggregator_maintenance_failures_total";
    /// Files merged into others, label `table`.
    pub const MAINTENANCE_MERGED_FILES_TOTAL: &str = "aggregator_maintenance_merged_files_total";
    /// Bytes of these, label `table`.
    pub const MAINTENANCE_READ_BYTES_TOTAL: &str = "aggregator_maintenance_read_bytes_total";
    /// Bytes written for them, label `table`.
    pub const MAINTENANCE_WRITTEN_BYTES_TOTAL: &str = "aggregator_maintenance_written_bytes_total";
    /// Files removed by retention, label `table`.
    pub const MAINTENANCE_EXPIRED_FILES_TOTAL: &str = "aggregator_maintenance_expired_files_total";
    /// Files deleted that nothing names, label `table`.
    pub const MAINTENANCE_VACUUMED_FILES_TOTAL: &str =
        "aggregator_maintenance_vacuumed_files_total";
    /// Log files deleted, label `table`.
    pub const MAINTENANCE_LOG_FILES_TOTAL: &str = "aggregator_maintenance_log_files_total";
    /// Alerts owed to some channel.
    pub const ALERTS_PENDING: &str = "aggregator_alerts_pending";
    /// Alerts delivered, label `channel`.
    pub const ALERTS_DELIVERED_TOTAL: &str = "aggregator_alerts_delivered_total";
    /// Attempts that failed, label `channel`.
    pub const ALERT_FAILURES_TOTAL: &str = "aggregator_alert_failures_total";
    /// Alerts that became dead letters, label `channel`.
    pub const ALERTS_GIVEN_UP_TOTAL: &str = "aggregator_alerts_given_up_total";
}

/// Starts logging.
///
/// # Errors
/// A filter that cannot be parsed, or logging that is started already.
pub fn start_logging(settings: &Telemetry) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(&settings.filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogOutput)
        .log_internal_errors(false);
    match settings.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
}

/// Standard error. What it refuses, because its disk is full or its reader gone, is lost; counting goes on.
struct LogOutput;

impl std::io::Write for LogOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if std::io::stderr().write_all(bytes).is_err() {
            metrics::counter!(names::LOG_LINES_LOST_TOTAL).increment(1);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts collecting metrics.
///
/// # Errors
/// A recorder is installed already.
pub fn start_metrics() -> Result<PrometheusHandle, BuildError> {
    let seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(names::EPOCH_COMMIT_SECONDS.to_owned()), &seconds)?
        .set_buckets_for_metric(Matcher::Full(names::MAINTENANCE_SECONDS.to_owned()), &seconds)?
        .install_recorder()?;
    describe();
    describe_maintenance();
    Ok(handle)
}

fn describe_maintenance() {
    describe_gauge!(names::TABLE_FILES, "Files of a table");
    describe_gauge!(names::TABLE_BYTES, "Bytes of a table's files");
    describe_counter!(names::MAINTENANCE_ROUNDS_TOTAL, "Rounds of maintenance by outcome");
    describe_gauge!(
        names::MAINTENANCE_LAST_SUCCESS_AGE_SECONDS,
        "Age of the last round without a fault"
    );
    describe_histogram!(names::MAINTENANCE_SECONDS, "Duration of a table's maintenance");
    describe_counter!(names::MAINTENANCE_FAILURES_TOTAL, "Failures of maintenance by table");
    describe_counter!(names::MAINTENANCE_MERGED_FILES_TOTAL, "Files merged into others by table");
    describe_counter!(names::MAINTENANCE_READ_BYTES_TOTAL, "Bytes read to merge files by table");
    describe_counter!(names::MAINTENANCE_WRITTEN_BYTES_TOTAL, "Bytes of merged files by table");
    describe_counter!(
        names::MAINTENANCE_EXPIRED_FILES_TOTAL,
        "Files removed by retention by table"
    );
    describe_counter!(names::MAINTENANCE_VACUUMED_FILES_TOTAL, "Files deleted that nothing names");
    describe_counter!(names::MAINTENANCE_LOG_FILES_TOTAL, "Log files deleted by table");
}

fn describe() {
    describe_counter!(names::LOG_LINES_LOST_TOTAL, "Log lines that could not be written");
    describe_counter!(names::RECORDS_IN_TOTAL, "Records taken from Kafka");
    describe_counter!(names::RECORDS_TOTAL, "Records by what became of them");
    describe_counter!(names::DEAD_LETTERS_TOTAL, "Dead letters by reason");
    describe_counter!(names::UNKNOWN_FIELDS_TOTAL, "Ignored fields of readings");
    describe_counter!(names::KAFKA_GAP_RECORDS_TOTAL, "Records lost to Kafka's retention");
    describe_counter!(names::KAFKA_ERRORS_TOTAL, "Errors of the consumer");
    describe_gauge!(names::LAG_RECORDS, "Records in Kafka that are not committed to the lake yet");
    describe_gauge!(names::PARTITIONS, "Partitions of this instance");
    describe_counter!(names::ASSIGNMENTS_TOTAL, "Assignments begun");
    describe_counter!(names::EPOCHS_TOTAL, "Epochs committed");
    describe_histogram!(names::EPOCH_COMMIT_SECONDS, "Duration of an epoch's commits");
    describe_counter!(names::LAKE_FAILURES_TOTAL, "Failures of the storage");
    describe_counter!(names::LOST_RACES_TOTAL, "Epochs that another instance was faster with");
    describe_counter!(names::ROWS_TOTAL, "Rows committed by table");
    describe_gauge!(names::SENSORS, "Sensors known");
    describe_gauge!(names::WINDOWS, "Windows held");
    describe_gauge!(names::MARKS_EVICTED, "High-water marks forgotten at a limit");
    describe_gauge!(names::ACCOUNTING_IMBALANCE_RECORDS, "Records whose fate is not known: 0");
    describe_gauge!(names::DEVICE_GAPS_OPEN, "Open gaps of devices");
    describe_gauge!(names::DEVICE_GAP_RECORDS, "Records missing in open gaps");
    describe_gauge!(names::DEVICE_OWED_RECORDS, "Records journalled and not delivered by devices");
    describe_gauge!(names::DEVICE_UNJUDGED_RECORDS, "Records not judged because of a limit");
    describe_counter!(names::DEVICE_LOST_RECORDS_TOTAL, "Records told as lost by cause");
    describe_gauge!(names::OLDEST_UNCOMMITTED_AGE_SECONDS, "Age of the oldest uncommitted record");
    describe_counter!(names::SETTINGS_RELOADS_TOTAL, "Settings read again, by result");
    describe_gauge!(
        names::UNMATCHED_READINGS,
        "Matches of rules by machine that are in no window, by reason"
    );
    describe_gauge!(names::MACHINES, "Machines known to rules that count by machine");
    describe_counter!(names::ALERTS_TOTAL, "Alerts decided");
    describe_gauge!(names::ALERTS_PENDING, "Alerts owed");
    describe_counter!(names::ALERTS_DELIVERED_TOTAL, "Alerts delivered by channel");
    describe_counter!(names::ALERT_FAILURES_TOTAL, "Failed attempts by channel");
    describe_counter!(names::ALERTS_GIVEN_UP_TOTAL, "Alerts that became dead letters by channel");
    describe_gauge!(
        target_names::ALERT_CIRCUIT,
        "By target: 0 sends, 1 probes, 2 sends nothing until the next probe"
    );
    describe_counter!(target_names::ALERT_CIRCUIT_OPENED_TOTAL, "Circuits opened by target");
    describe_counter!(target_names::ALERT_DIGESTS_TOTAL, "Digests delivered by target");
    describe_gauge!(target_names::ALERTS_HELD, "Events held for the next digest by target");
    describe_counter!(
        outcome_names::OUTCOME_REQUESTS_TOTAL,
        "Requests that told outcomes, by result"
    );
    describe_counter!(
        outcome_names::OUTCOMES_RECEIVED_TOTAL,
        "Outcomes by verdict and by the rule of their alert"
    );
    describe_gauge!(
        outcome_names::PRECISION_RATIO,
        "Confirmed of the alerts or trips with a verdict, by rule and model"
    );
    describe_gauge!(
        outcome_names::JUDGED_ALERTS,
        "Alerts of rules and trips of models by verdict, of the last 90 days"
    );
}

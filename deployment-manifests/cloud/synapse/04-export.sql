-- Copies the lake to plain Parquet files, from which a dedicated SQL pool can load (05-dedicated-pool.sql): it reads no Delta, and the
-- files of a Delta table are not its rows, since replaced ones lie among them and partition columns are in none. Run in the serverless
-- database, each time with a new text for <run>, such as 20260301-0200: an export must find its folder empty. Of tables with revisions
-- the newest rows alone. `features` stays here: a text without bound cannot be part of a columnar table.
--
-- Once before: the container for exports (never the lake's own), for <account> and <export-container>:
--
--     CREATE EXTERNAL DATA SOURCE lake_export
--     WITH (LOCATION = 'https://<account>.dfs.core.windows.net/<export-container>', CREDENTIAL = workspace_identity);
--
-- `telemetry` is copied by days, from <first-day> on (a backlog brings readings of earlier days: go back as far as your outages), the
-- others whole.

CREATE SCHEMA exported;
GO

CREATE EXTERNAL TABLE exported.telemetry
WITH (LOCATION = '<run>/telemetry/', DATA_SOURCE = lake_export, FILE_FORMAT = parquet_snappy)
AS
SELECT
    [date], [metric_type], [sensor_id], [timestamp], [value], [machine_id], [unit], [quality], [device_id],
    [generation], [sequence], [historical], [source_topic], [source_partition], [source_offset]
FROM lake.telemetry
WHERE [date] >= '<first-day>';
GO

CREATE EXTERNAL TABLE exported.anomalies
WITH (LOCATION = '<run>/anomalies/', DATA_SOURCE = lake_export, FILE_FORMAT = parquet_snappy)
AS
SELECT
    [date], [rule], [sensor_id], [machine_id], [window_start], [window_end], [is_anomaly], [count],
    [revision], [closed_by], [max_value], [min_value], [mean_value], [rate_of_change], [first_match],
    [last_match], [emitted_at]
FROM lake.anomalies_latest;
GO

CREATE EXTERNAL TABLE exported.late_readings
WITH (LOCATION = '<run>/late_readings/', DATA_SOURCE = lake_export, FILE_FORMAT = parquet_snappy)
AS
SELECT
    [date], [metric_type], [sensor_id], [timestamp], [value], [machine_id], [unit], [quality], [device_id],
    [generation], [sequence], [historical], [source_topic], [source_partition], [source_offset],
    [received_at]
FROM lake.late_readings;
GO

CREATE EXTERNAL TABLE exported.machine_events
WITH (LOCATION = '<run>/machine_events/', DATA_SOURCE = lake_export, FILE_FORMAT = parquet_snappy)
AS
SELECT
    [date], [event_type], [machine_id], [timestamp], [device_id], [generation], [sequence], [historical],
    [cause], [rule], [sensor_id], [metric_type], [value], [limit], [score], [model],
    [command_latency_micros], [confirmation_latency_micros], [first_sequence], [last_sequence],
    [record_count], [detail], [rule_version], [trip_id], [operator], [delivered_sequence],
    [waveform_sequences], [contributions], [source_topic], [source_partition], [source_offset], [received_at]
FROM lake.machine_events;
GO

CREATE EXTERNAL TABLE exported.alerts
WITH (LOCATION = '<run>/alerts/', DATA_SOURCE = lake_export, FILE_FORMAT = parquet_snappy)
AS
SELECT
    [date], [alert_id], [revision], [state], [rule], [severity], [machine_id], [sensor_id], [window_start],
    [window_end], [findings], [count], [threshold], [observed], [detail], [trip_id], [fired_at],
    [changed_at], [resolved_at], [historical], [suppressed_by]
FROM lake.alerts_latest;
GO

CREATE EXTERNAL TABLE exported.outcomes
WITH (LOCATION = '<run>/outcomes/', DATA_SOURCE = lake_export, FILE_FORMAT = parquet_snappy)
AS
SELECT
    [date], [outcome_id], [verdict], [machine_id], [sensor_id], [alert_id], [trip_id], [ticket_id], [part],
    [note], [reported_by], [timestamp], [received_at], [source_topic], [source_partition], [source_offset]
FROM lake.outcomes_latest;
GO

CREATE EXTERNAL TABLE exported.waveforms
WITH (LOCATION = '<run>/waveforms/', DATA_SOURCE = lake_export, FILE_FORMAT = parquet_snappy)
AS
SELECT
    [date], [machine_id], [sensor_id], [trip_id], [piece], [first_sample], [sample_rate_hz], [unit],
    [sample_count], [samples], [device_id], [generation], [sequence], [received_at], [source_topic],
    [source_partition], [source_offset]
FROM lake.waveforms;
GO

CREATE EXTERNAL TABLE exported.dead_letters
WITH (LOCATION = '<run>/dead_letters/', DATA_SOURCE = lake_export, FILE_FORMAT = parquet_snappy)
AS
SELECT
    [date], [reason], [detail], [source], [timestamp], [device_id], [generation], [sequence], [raw],
    [raw_length], [content_type], [source_topic], [source_partition], [source_offset], [received_at]
FROM lake.dead_letters;
GO

-- The files stay; only the names go, so that the next run can use them.
DROP EXTERNAL TABLE exported.telemetry;
GO
DROP EXTERNAL TABLE exported.anomalies;
GO
DROP EXTERNAL TABLE exported.late_readings;
GO
DROP EXTERNAL TABLE exported.machine_events;
GO
DROP EXTERNAL TABLE exported.alerts;
GO
DROP EXTERNAL TABLE exported.outcomes;
GO
DROP EXTERNAL TABLE exported.waveforms;
GO
DROP EXTERNAL TABLE exported.dead_letters;
GO
DROP SCHEMA exported;
GO

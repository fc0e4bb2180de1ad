-- A view over each table of the lake, with the types of the contract (cloud-aggregator/contract/lake.odcs.json), and the newest rows of
-- the tables with revisions. Run in the database of 01-setup.sql; running it again is harmless.
--
-- Reading less: the tables are partitioned by `date` (`telemetry` and `late_readings` by `metric_type`, too). A condition on these columns
-- keeps the pool from opening the files of other days; one on `timestamp` alone does not. So ask for both:
--
--     SELECT * FROM lake.telemetry WHERE [date] = '2026-03-01' AND metric_type = 'temperature' AND sensor_id = 'press-1/oil';
--
-- Times are UTC, to the microsecond. A text has as many bytes as the programs allow; where nothing bounds it, it is VARCHAR(MAX), since a
-- longer one makes a query fail. `features`, a map, is its JSON text: JSON_VALUE(features, '$.crest_factor'). The struct `window` is left
-- out, `window_start` and `window_end` say the same. `generation` and `sequence` are the bits of unsigned numbers.

CREATE OR ALTER VIEW lake.telemetry AS
SELECT
    r.[date], r.[metric_type], r.[sensor_id], r.[timestamp], r.[value], r.[machine_id], r.[unit], r.[quality],
    r.[device_id], r.[generation], r.[sequence], r.[historical], r.[features], r.[source_topic],
    r.[source_partition], r.[source_offset]
FROM OPENROWSET(BULK 'telemetry', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
WITH (
    [date] DATE,
    [metric_type] VARCHAR(64) COLLATE Latin1_General_100_BIN2_UTF8,
    [sensor_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [timestamp] DATETIME2(6),
    [value] FLOAT,
    [machine_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [unit] VARCHAR(32) COLLATE Latin1_General_100_BIN2_UTF8,
    [quality] VARCHAR(16) COLLATE Latin1_General_100_BIN2_UTF8,
    [device_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [generation] BIGINT,
    [sequence] BIGINT,
    [historical] BIT,
    [features] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT
) AS r;
GO

CREATE OR ALTER VIEW lake.anomalies AS
SELECT
    r.[date], r.[rule], r.[sensor_id], r.[machine_id], r.[window_start], r.[window_end], r.[is_anomaly],
    r.[count], r.[revision], r.[closed_by], r.[max_value], r.[min_value], r.[mean_value], r.[rate_of_change],
    r.[first_match], r.[last_match], r.[emitted_at]
FROM OPENROWSET(BULK 'anomalies', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
WITH (
    [date] DATE,
    [rule] VARCHAR(64) COLLATE Latin1_General_100_BIN2_UTF8,
    [sensor_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [machine_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [window_start] DATETIME2(6),
    [window_end] DATETIME2(6),
    [is_anomaly] BIT,
    [count] BIGINT,
    [revision] INT,
    [closed_by] VARCHAR(16) COLLATE Latin1_General_100_BIN2_UTF8,
    [max_value] FLOAT,
    [min_value] FLOAT,
    [mean_value] FLOAT,
    [rate_of_change] FLOAT,
    [first_match] DATETIME2(6),
    [last_match] DATETIME2(6),
    [emitted_at] DATETIME2(6)
) AS r;
GO

CREATE OR ALTER VIEW lake.late_readings AS
SELECT
    r.[date], r.[metric_type], r.[sensor_id], r.[timestamp], r.[value], r.[machine_id], r.[unit], r.[quality],
    r.[device_id], r.[generation], r.[sequence], r.[historical], r.[features], r.[source_topic],
    r.[source_partition], r.[source_offset], r.[received_at]
FROM OPENROWSET(BULK 'late_readings', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
WITH (
    [date] DATE,
    [metric_type] VARCHAR(64) COLLATE Latin1_General_100_BIN2_UTF8,
    [sensor_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [timestamp] DATETIME2(6),
    [value] FLOAT,
    [machine_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [unit] VARCHAR(32) COLLATE Latin1_General_100_BIN2_UTF8,
    [quality] VARCHAR(16) COLLATE Latin1_General_100_BIN2_UTF8,
    [device_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [generation] BIGINT,
    [sequence] BIGINT,
    [historical] BIT,
    [features] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT,
    [received_at] DATETIME2(6)
) AS r;
GO

CREATE OR ALTER VIEW lake.machine_events AS
SELECT
    r.[date], r.[event_type], r.[machine_id], r.[timestamp], r.[device_id], r.[generation], r.[sequence],
    r.[historical], r.[cause], r.[rule], r.[sensor_id], r.[metric_type], r.[value], r.[limit], r.[score],
    r.[model], r.[command_latency_micros], r.[confirmation_latency_micros], r.[first_sequence],
    r.[last_sequence], r.[record_count], r.[detail], r.[rule_version], r.[trip_id], r.[operator],
    r.[delivered_sequence], r.[waveform_sequences], r.[contributions], r.[source_topic], r.[source_partition],
    r.[source_offset], r.[received_at]
FROM OPENROWSET(BULK 'machine_events', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
WITH (
    [date] DATE,
    [event_type] VARCHAR(32) COLLATE Latin1_General_100_BIN2_UTF8,
    [machine_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [timestamp] DATETIME2(6),
    [device_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [generation] BIGINT,
    [sequence] BIGINT,
    [historical] BIT,
    [cause] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [rule] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [sensor_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [metric_type] VARCHAR(64) COLLATE Latin1_General_100_BIN2_UTF8,
    [value] FLOAT,
    [limit] FLOAT,
    [score] FLOAT,
    [model] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [command_latency_micros] BIGINT,
    [confirmation_latency_micros] BIGINT,
    [first_sequence] BIGINT,
    [last_sequence] BIGINT,
    [record_count] BIGINT,
    [detail] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [rule_version] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [trip_id] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [operator] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [delivered_sequence] BIGINT,
    [waveform_sequences] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [contributions] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT,
    [received_at] DATETIME2(6)
) AS r;
GO

CREATE OR ALTER VIEW lake.alerts AS
SELECT
    r.[date], r.[alert_id], r.[revision], r.[state], r.[rule], r.[severity], r.[machine_id], r.[sensor_id],
    r.[window_start], r.[window_end], r.[findings], r.[count], r.[threshold], r.[observed], r.[detail],
    r.[trip_id], r.[fired_at], r.[changed_at], r.[resolved_at], r.[historical], r.[suppressed_by]
FROM OPENROWSET(BULK 'alerts', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
WITH (
    [date] DATE,
    [alert_id] VARCHAR(64) COLLATE Latin1_General_100_BIN2_UTF8,
    [revision] INT,
    [state] VARCHAR(16) COLLATE Latin1_General_100_BIN2_UTF8,
    [rule] VARCHAR(64) COLLATE Latin1_General_100_BIN2_UTF8,
    [severity] INT,
    [machine_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [sensor_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [window_start] DATETIME2(6),
    [window_end] DATETIME2(6),
    [findings] BIGINT,
    [count] BIGINT,
    [threshold] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [observed] FLOAT,
    [detail] VARCHAR(1024) COLLATE Latin1_General_100_BIN2_UTF8,
    [trip_id] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [fired_at] DATETIME2(6),
    [changed_at] DATETIME2(6),
    [resolved_at] DATETIME2(6),
    [historical] BIT,
    [suppressed_by] VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8
) AS r;
GO

CREATE OR ALTER VIEW lake.outcomes AS
SELECT
    r.[date], r.[outcome_id], r.[verdict], r.[machine_id], r.[sensor_id], r.[alert_id], r.[trip_id],
    r.[ticket_id], r.[part], r.[note], r.[reported_by], r.[timestamp], r.[received_at], r.[source_topic],
    r.[source_partition], r.[source_offset]
FROM OPENROWSET(BULK 'outcomes', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
WITH (
    [date] DATE,
    [outcome_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [verdict] VARCHAR(16) COLLATE Latin1_General_100_BIN2_UTF8,
    [machine_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [sensor_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [alert_id] VARCHAR(64) COLLATE Latin1_General_100_BIN2_UTF8,
    [trip_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [ticket_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [part] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [note] VARCHAR(4096) COLLATE Latin1_General_100_BIN2_UTF8,
    [reported_by] VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8,
    [timestamp] DATETIME2(6),
    [received_at] DATETIME2(6),
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT
) AS r;
GO

CREATE OR ALTER VIEW lake.waveforms AS
SELECT
    r.[date], r.[machine_id], r.[sensor_id], r.[trip_id], r.[piece], r.[first_sample], r.[sample_rate_hz],
    r.[unit], r.[sample_count], r.[samples], r.[device_id], r.[generation], r.[sequence], r.[received_at],
    r.[source_topic], r.[source_partition], r.[source_offset]
FROM OPENROWSET(BULK 'waveforms', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
WITH (
    [date] DATE,
    [machine_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [sensor_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [trip_id] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [piece] INT,
    [first_sample] DATETIME2(6),
    [sample_rate_hz] FLOAT,
    [unit] VARCHAR(32) COLLATE Latin1_General_100_BIN2_UTF8,
    [sample_count] INT,
    [samples] VARBINARY(MAX),
    [device_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [generation] BIGINT,
    [sequence] BIGINT,
    [received_at] DATETIME2(6),
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT
) AS r;
GO

CREATE OR ALTER VIEW lake.dead_letters AS
SELECT
    r.[date], r.[reason], r.[detail], r.[source], r.[timestamp], r.[device_id], r.[generation], r.[sequence],
    r.[raw], r.[raw_length], r.[content_type], r.[source_topic], r.[source_partition], r.[source_offset],
    r.[received_at]
FROM OPENROWSET(BULK 'dead_letters', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
WITH (
    [date] DATE,
    [reason] VARCHAR(64) COLLATE Latin1_General_100_BIN2_UTF8,
    [detail] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [source] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [timestamp] DATETIME2(6),
    [device_id] VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8,
    [generation] BIGINT,
    [sequence] BIGINT,
    [raw] VARBINARY(MAX),
    [raw_length] BIGINT,
    [content_type] VARCHAR(MAX) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT,
    [received_at] DATETIME2(6)
) AS r;
GO

-- ---- Of several rows about one thing the newest ----

-- Of the rows of one rule, sensor or machine, and window start the highest revision holds. One with `is_anomaly = 0` takes the window
-- back. A window's `date` is that of its start: it is among the keys so that a condition on it still keeps files from being opened.
CREATE OR ALTER VIEW lake.anomalies_latest AS
SELECT
    n.[date], n.[rule], n.[sensor_id], n.[machine_id], n.[window_start], n.[window_end], n.[is_anomaly],
    n.[count], n.[revision], n.[closed_by], n.[max_value], n.[min_value], n.[mean_value], n.[rate_of_change],
    n.[first_match], n.[last_match], n.[emitted_at]
FROM (
    SELECT
        a.*,
        ROW_NUMBER() OVER (
            PARTITION BY
                a.[date], a.[rule], a.[sensor_id], CASE WHEN a.[sensor_id] IS NULL THEN a.[machine_id] END, a.[window_start]
            ORDER BY a.[revision] DESC, a.[emitted_at] DESC
        ) AS age
    FROM lake.anomalies AS a
) AS n
WHERE n.age = 1;
GO

-- Of the rows of one alert the highest revision holds. Its `date` is that of `fired_at`, which does not change.
CREATE OR ALTER VIEW lake.alerts_latest AS
SELECT
    n.[date], n.[alert_id], n.[revision], n.[state], n.[rule], n.[severity], n.[machine_id], n.[sensor_id],
    n.[window_start], n.[window_end], n.[findings], n.[count], n.[threshold], n.[observed], n.[detail],
    n.[trip_id], n.[fired_at], n.[changed_at], n.[resolved_at], n.[historical], n.[suppressed_by]
FROM (
    SELECT
        a.*,
        ROW_NUMBER() OVER (PARTITION BY a.[date], a.[alert_id] ORDER BY a.[revision] DESC) AS age
    FROM lake.alerts AS a
) AS n
WHERE n.age = 1;
GO

-- Of the reports of one outcome the newest timestamp holds, and of equal ones the later record. A correction may be of another day, so
-- that `date` is no key here: a condition on it is applied after all days are read.
CREATE OR ALTER VIEW lake.outcomes_latest AS
SELECT
    n.[date], n.[outcome_id], n.[verdict], n.[machine_id], n.[sensor_id], n.[alert_id], n.[trip_id],
    n.[ticket_id], n.[part], n.[note], n.[reported_by], n.[timestamp], n.[received_at], n.[source_topic],
    n.[source_partition], n.[source_offset]
FROM (
    SELECT
        o.*,
        ROW_NUMBER() OVER (
            PARTITION BY o.[outcome_id]
            ORDER BY o.[timestamp] DESC, o.[source_offset] DESC, o.[source_partition] DESC
        ) AS age
    FROM lake.outcomes AS o
) AS n
WHERE n.age = 1;
GO

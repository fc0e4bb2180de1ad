-- Tables of a dedicated SQL pool, and how the files of 04-export.sql come into them. The alternative where queries are many and must
-- answer in a second; until then the views of the serverless pool need no copy. The pool's managed identity needs the role
-- "Storage Blob Data Reader" on the container of the exports. Put in <account>, <export-container>, <run> and <first-day> as there.

-- ---- Once ----

CREATE SCHEMA lake;
GO

CREATE TABLE lake.telemetry (
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
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT
)
WITH (DISTRIBUTION = HASH ([sensor_id]), CLUSTERED COLUMNSTORE INDEX);
GO

-- Where a run of readings lands first.
CREATE TABLE lake.telemetry_new (
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
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT
)
WITH (DISTRIBUTION = ROUND_ROBIN, HEAP);
GO

CREATE TABLE lake.anomalies (
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
)
WITH (DISTRIBUTION = HASH ([rule]), CLUSTERED COLUMNSTORE INDEX);
GO

CREATE TABLE lake.late_readings (
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
    [source_topic] VARCHAR(249) COLLATE Latin1_General_100_BIN2_UTF8,
    [source_partition] INT,
    [source_offset] BIGINT,
    [received_at] DATETIME2(6)
)
WITH (DISTRIBUTION = HASH ([sensor_id]), CLUSTERED COLUMNSTORE INDEX);
GO

CREATE TABLE lake.machine_events (
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
)
WITH (DISTRIBUTION = HASH ([machine_id]), HEAP);
GO

CREATE TABLE lake.alerts (
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
)
WITH (DISTRIBUTION = HASH ([alert_id]), HEAP);
GO

CREATE TABLE lake.outcomes (
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
)
WITH (DISTRIBUTION = HASH ([outcome_id]), CLUSTERED COLUMNSTORE INDEX);
GO

CREATE TABLE lake.waveforms (
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
)
WITH (DISTRIBUTION = HASH ([sensor_id]), HEAP);
GO

CREATE TABLE lake.dead_letters (
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
)
WITH (DISTRIBUTION = HASH ([source_topic]), HEAP);
GO

-- ---- Each run: readings ----

TRUNCATE TABLE lake.telemetry_new;
GO

COPY INTO lake.telemetry_new (
    [date], [metric_type], [sensor_id], [timestamp], [value], [machine_id], [unit], [quality], [device_id],
    [generation], [sequence], [historical], [source_topic], [source_partition], [source_offset]
)
FROM 'https://<account>.dfs.core.windows.net/<export-container>/<run>/telemetry/'
WITH (FILE_TYPE = 'PARQUET', CREDENTIAL = (IDENTITY = 'Managed Identity'));
GO

-- One transaction: a query never sees a day twice, or half of it. Repeating a run changes nothing.
BEGIN TRANSACTION;
DELETE FROM lake.telemetry WHERE [date] >= '<first-day>';
INSERT INTO lake.telemetry (
    [date], [metric_type], [sensor_id], [timestamp], [value], [machine_id], [unit], [quality], [device_id],
    [generation], [sequence], [historical], [source_topic], [source_partition], [source_offset]
)
SELECT
    [date], [metric_type], [sensor_id], [timestamp], [value], [machine_id], [unit], [quality], [device_id],
    [generation], [sequence], [historical], [source_topic], [source_partition], [source_offset]
FROM lake.telemetry_new;
COMMIT TRANSACTION;
GO

-- ---- Each run: the other tables, whole, since a correction may be of any day ----

TRUNCATE TABLE lake.anomalies;
GO

COPY INTO lake.anomalies (
    [date], [rule], [sensor_id], [machine_id], [window_start], [window_end], [is_anomaly], [count],
    [revision], [closed_by], [max_value], [min_value], [mean_value], [rate_of_change], [first_match],
    [last_match], [emitted_at]
)
FROM 'https://<account>.dfs.core.windows.net/<export-container>/<run>/anomalies/'
WITH (FILE_TYPE = 'PARQUET', CREDENTIAL = (IDENTITY = 'Managed Identity'));
GO

TRUNCATE TABLE lake.late_readings;
GO

COPY INTO lake.late_readings (
    [date], [metric_type], [sensor_id], [timestamp], [value], [machine_id], [unit], [quality], [device_id],
    [generation], [sequence], [historical], [source_topic], [source_partition], [source_offset],
    [received_at]
)
FROM 'https://<account>.dfs.core.windows.net/<export-container>/<run>/late_readings/'
WITH (FILE_TYPE = 'PARQUET', CREDENTIAL = (IDENTITY = 'Managed Identity'));
GO

TRUNCATE TABLE lake.machine_events;
GO

COPY INTO lake.machine_events (
    [date], [event_type], [machine_id], [timestamp], [device_id], [generation], [sequence], [historical],
    [cause], [rule], [sensor_id], [metric_type], [value], [limit], [score], [model],
    [command_latency_micros], [confirmation_latency_micros], [first_sequence], [last_sequence],
    [record_count], [detail], [rule_version], [trip_id], [operator], [delivered_sequence],
    [waveform_sequences], [contributions], [source_topic], [source_partition], [source_offset], [received_at]
)
FROM 'https://<account>.dfs.core.windows.net/<export-container>/<run>/machine_events/'
WITH (FILE_TYPE = 'PARQUET', CREDENTIAL = (IDENTITY = 'Managed Identity'));
GO

TRUNCATE TABLE lake.alerts;
GO

COPY INTO lake.alerts (
    [date], [alert_id], [revision], [state], [rule], [severity], [machine_id], [sensor_id], [window_start],
    [window_end], [findings], [count], [threshold], [observed], [detail], [trip_id], [fired_at],
    [changed_at], [resolved_at], [historical], [suppressed_by]
)
FROM 'https://<account>.dfs.core.windows.net/<export-container>/<run>/alerts/'
WITH (FILE_TYPE = 'PARQUET', CREDENTIAL = (IDENTITY = 'Managed Identity'));
GO

TRUNCATE TABLE lake.outcomes;
GO

COPY INTO lake.outcomes (
    [date], [outcome_id], [verdict], [machine_id], [sensor_id], [alert_id], [trip_id], [ticket_id], [part],
    [note], [reported_by], [timestamp], [received_at], [source_topic], [source_partition], [source_offset]
)
FROM 'https://<account>.dfs.core.windows.net/<export-container>/<run>/outcomes/'
WITH (FILE_TYPE = 'PARQUET', CREDENTIAL = (IDENTITY = 'Managed Identity'));
GO

TRUNCATE TABLE lake.waveforms;
GO

COPY INTO lake.waveforms (
    [date], [machine_id], [sensor_id], [trip_id], [piece], [first_sample], [sample_rate_hz], [unit],
    [sample_count], [samples], [device_id], [generation], [sequence], [received_at], [source_topic],
    [source_partition], [source_offset]
)
FROM 'https://<account>.dfs.core.windows.net/<export-container>/<run>/waveforms/'
WITH (FILE_TYPE = 'PARQUET', CREDENTIAL = (IDENTITY = 'Managed Identity'));
GO

TRUNCATE TABLE lake.dead_letters;
GO

COPY INTO lake.dead_letters (
    [date], [reason], [detail], [source], [timestamp], [device_id], [generation], [sequence], [raw],
    [raw_length], [content_type], [source_topic], [source_partition], [source_offset], [received_at]
)
FROM 'https://<account>.dfs.core.windows.net/<export-container>/<run>/dead_letters/'
WITH (FILE_TYPE = 'PARQUET', CREDENTIAL = (IDENTITY = 'Managed Identity'));
GO

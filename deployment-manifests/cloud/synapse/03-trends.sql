-- What reports read: days and hours instead of readings. Run after 02-views.sql; running it again is harmless.
--
-- Each view groups by `date`, so that a condition on it reaches the files. Readings that their producer calls bad are in no figure, as in
-- the rules.

-- An hour of a sensor and metric. A sensor that changes its unit has a row for each.
CREATE OR ALTER VIEW trends.sensor_hours AS
SELECT
    t.[date],
    DATEADD(HOUR, DATEPART(HOUR, t.[timestamp]), CAST(t.[date] AS DATETIME2(0))) AS hour_start,
    t.[metric_type],
    t.[machine_id],
    t.[sensor_id],
    t.[unit],
    COUNT_BIG(*) AS readings,
    SUM(t.[value]) AS sum_value,
    MIN(t.[value]) AS min_value,
    AVG(t.[value]) AS mean_value,
    MAX(t.[value]) AS max_value,
    -- Of the sample; null where there is one reading.
    STDEV(t.[value]) AS deviation
FROM lake.telemetry AS t
WHERE t.[quality] IS NULL OR t.[quality] <> 'bad'
GROUP BY
    t.[date],
    DATEADD(HOUR, DATEPART(HOUR, t.[timestamp]), CAST(t.[date] AS DATETIME2(0))),
    t.[metric_type],
    t.[machine_id],
    t.[sensor_id],
    t.[unit];
GO

-- A day of a sensor and metric.
CREATE OR ALTER VIEW trends.sensor_days AS
SELECT
    t.[date],
    t.[metric_type],
    t.[machine_id],
    t.[sensor_id],
    t.[unit],
    COUNT_BIG(*) AS readings,
    SUM(t.[value]) AS sum_value,
    MIN(t.[value]) AS min_value,
    AVG(t.[value]) AS mean_value,
    MAX(t.[value]) AS max_value,
    STDEV(t.[value]) AS deviation,
    MIN(t.[timestamp]) AS first_reading,
    MAX(t.[timestamp]) AS last_reading
FROM lake.telemetry AS t
WHERE t.[quality] IS NULL OR t.[quality] <> 'bad'
GROUP BY t.[date], t.[metric_type], t.[machine_id], t.[sensor_id], t.[unit];
GO

-- Windows over the threshold of their rule by day, and those that were taken back since.
CREATE OR ALTER VIEW trends.anomaly_days AS
SELECT
    a.[date],
    a.[rule],
    a.[machine_id],
    a.[sensor_id],
    CAST(SUM(CASE WHEN a.[is_anomaly] = 1 THEN 1 ELSE 0 END) AS BIGINT) AS anomalies,
    CAST(SUM(CASE WHEN a.[is_anomaly] = 1 THEN a.[count] ELSE 0 END) AS BIGINT) AS matches,
    CAST(SUM(CASE WHEN a.[is_anomaly] = 0 THEN 1 ELSE 0 END) AS BIGINT) AS taken_back,
    CAST(SUM(CASE WHEN a.[revision] > 1 THEN 1 ELSE 0 END) AS BIGINT) AS corrected,
    MAX(CASE WHEN a.[is_anomaly] = 1 THEN a.[max_value] END) AS max_value,
    MIN(CASE WHEN a.[is_anomaly] = 1 THEN a.[min_value] END) AS min_value
FROM lake.anomalies_latest AS a
GROUP BY a.[date], a.[rule], a.[machine_id], a.[sensor_id];
GO

-- Alerts by the day on which they fired. `quiet` are those that were told to nobody: suppressed, or over long ago.
CREATE OR ALTER VIEW trends.alert_days AS
SELECT
    a.[date],
    a.[rule],
    a.[severity],
    a.[machine_id],
    COUNT_BIG(*) AS alerts,
    CAST(SUM(CASE WHEN a.[state] = 'resolved' THEN 1 ELSE 0 END) AS BIGINT) AS resolved,
    CAST(SUM(CASE WHEN a.[suppressed_by] IS NOT NULL OR a.[historical] = 1 THEN 1 ELSE 0 END) AS BIGINT) AS quiet,
    CAST(SUM(a.[findings]) AS BIGINT) AS findings,
    CAST(SUM(DATEDIFF_BIG(SECOND, a.[fired_at], a.[resolved_at])) AS BIGINT) AS seconds_to_resolve
FROM lake.alerts_latest AS a
GROUP BY a.[date], a.[rule], a.[severity], a.[machine_id];
GO

-- What happened to machines and gateways by day: trips, resets, faults of sensors. Latencies are those of stops.
CREATE OR ALTER VIEW trends.machine_event_days AS
SELECT
    e.[date],
    e.[machine_id],
    e.[event_type],
    COUNT_BIG(*) AS events,
    AVG(CAST(e.[command_latency_micros] AS FLOAT)) AS mean_command_latency_micros,
    MAX(e.[command_latency_micros]) AS max_command_latency_micros,
    MAX(e.[confirmation_latency_micros]) AS max_confirmation_latency_micros,
    CAST(SUM(e.[record_count]) AS BIGINT) AS records
FROM lake.machine_events AS e
GROUP BY e.[date], e.[machine_id], e.[event_type];
GO

-- What people found of alerts, by the day of the alert: of several outcomes about one alert the newest with a verdict. An outcome about
-- another machine than that of the alert is a mistake and judges nothing. Alerts that were suppressed are left out. This is what
-- `cloud-aggregator report precision` says of alerts; it counts trips, too.
CREATE OR ALTER VIEW trends.verdict_days AS
SELECT
    v.[date],
    v.[rule],
    v.[machine_id],
    COUNT_BIG(*) AS alerts,
    CAST(SUM(CASE WHEN v.[verdict] IN ('confirmed', 'part-replaced') THEN 1 ELSE 0 END) AS BIGINT) AS confirmed,
    CAST(SUM(CASE WHEN v.[verdict] = 'false-alarm' THEN 1 ELSE 0 END) AS BIGINT) AS false_alarms,
    CAST(SUM(CASE WHEN v.[verdict] IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS without_verdict
FROM (
    SELECT
        a.[date],
        a.[rule],
        a.[machine_id],
        o.[verdict],
        ROW_NUMBER() OVER (
            PARTITION BY a.[date], a.[alert_id]
            ORDER BY o.[timestamp] DESC, o.[source_offset] DESC, o.[source_partition] DESC
        ) AS age
    FROM lake.alerts_latest AS a
    LEFT JOIN lake.outcomes_latest AS o
        ON
            o.[alert_id] = a.[alert_id]
            AND o.[verdict] <> 'note'
            AND (a.[machine_id] IS NULL OR o.[machine_id] = a.[machine_id])
    WHERE a.[suppressed_by] IS NULL
) AS v
WHERE v.age = 1
GROUP BY v.[date], v.[rule], v.[machine_id];
GO

-- What came in by day: counted, too late, or refused and why.
CREATE OR ALTER VIEW trends.input_days AS
SELECT t.[date], 'counted' AS kind, t.[metric_type] AS reason, COUNT_BIG(*) AS records
FROM lake.telemetry AS t
GROUP BY t.[date], t.[metric_type]
UNION ALL
SELECT l.[date], 'late' AS kind, l.[metric_type] AS reason, COUNT_BIG(*) AS records
FROM lake.late_readings AS l
GROUP BY l.[date], l.[metric_type]
UNION ALL
SELECT d.[date], 'refused' AS kind, d.[reason] AS reason, COUNT_BIG(*) AS records
FROM lake.dead_letters AS d
GROUP BY d.[date], d.[reason];
GO

-- Machines that measured, alarmed or tripped on a day: what a report filters by.
CREATE OR ALTER VIEW trends.machine_days AS
SELECT t.[date], t.[machine_id] FROM lake.telemetry AS t WHERE t.[machine_id] IS NOT NULL
UNION
SELECT a.[date], a.[machine_id] FROM lake.alerts AS a WHERE a.[machine_id] IS NOT NULL
UNION
SELECT e.[date], e.[machine_id] FROM lake.machine_events AS e
UNION
SELECT n.[date], n.[machine_id] FROM lake.anomalies AS n WHERE n.[machine_id] IS NOT NULL;
GO

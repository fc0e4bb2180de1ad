-- Only where a rule has the output mode `complete`: without one the lake has no table `current_windows`, and a view over a folder that is
-- not there cannot be made. One row for each window that is open or can still be corrected, as of the last trigger; whole files are
-- replaced at each, so that a long query may have to be asked again. Run after 02-views.sql.

CREATE OR ALTER VIEW lake.current_windows AS
SELECT
    r.[date], r.[rule], r.[sensor_id], r.[machine_id], r.[window_start], r.[window_end], r.[is_anomaly],
    r.[count], r.[revision], r.[closed_by], r.[max_value], r.[min_value], r.[mean_value], r.[rate_of_change],
    r.[first_match], r.[last_match], r.[emitted_at], r.[owner]
FROM OPENROWSET(BULK 'current_windows', DATA_SOURCE = 'lake', FORMAT = 'DELTA')
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
    [emitted_at] DATETIME2(6),
    [owner] VARCHAR(260) COLLATE Latin1_General_100_BIN2_UTF8
) AS r;
GO

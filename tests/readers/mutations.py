"""Whether the checks notice anything: mutations.py ROOT LAKE. Each change of the scripts or of the project must be a fault, in these words.

The repository is not touched: what the checks read is copied first.
"""

import dataclasses
import pathlib
import shutil
import sys
import tempfile

import check_power_bi
import check_synapse
import expected
from synapse import Fault

SQL = check_synapse.FOLDER
MODEL = f"{check_power_bi.FOLDER}/{check_power_bi.PROJECT}.SemanticModel/definition"
REPORT = f"{check_power_bi.FOLDER}/{check_power_bi.PROJECT}.Report/definition"
READ = [SQL, check_power_bi.FOLDER, "cloud-aggregator/contract", "cloud-aggregator/core/src", "shared-proto/src"]


@dataclasses.dataclass
class Change:
    """In the first file of these where it stands, `old` becomes `new`, and the check says `fault`."""

    files: str
    old: str
    new: str
    fault: str


TEXTS = [
    Change(f"{SQL}/02-views.sql", "CREATE OR ALTER VIEW lake.alerts AS", "CREATE OR ALTER VIEW lake.alerts SELECT", "02-views.sql"),
    Change(f"{SQL}/01-setup.sql", "DATABASE SCOPED CREDENTIAL", "DATABASE CREDENTIAL SCOPED", "01-setup.sql"),
    Change(f"{SQL}/02-views.sql", "    [value] FLOAT,\n", "", "lake.telemetry: columns ['value']"),
    Change(f"{SQL}/02-views.sql", "    [value] FLOAT,\n", "    [value] FLOAT,\n    [colour] INT,\n",
           "lake.telemetry: columns ['colour']"),
    Change(f"{SQL}/02-views.sql", "[value] FLOAT", "[value] REAL", "telemetry.value is REAL"),
    Change(f"{SQL}/02-views.sql", "[timestamp] DATETIME2(6)", "[timestamp] DATETIME2(3)", "telemetry.timestamp is DATETIME2(3)"),
    Change(f"{SQL}/02-views.sql", "[sensor_id] VARCHAR(256)", "[sensor_id] VARCHAR(128)", "256 bytes are its bound"),
    Change(f"{SQL}/02-views.sql", "[features] VARCHAR(MAX)", "[features] VARCHAR(8000)", "nothing bounds it"),
    Change(f"{SQL}/02-views.sql", "[unit] VARCHAR(32) COLLATE Latin1_General_100_BIN2_UTF8", "[unit] VARCHAR(32)",
           "has the collation None"),
    Change(f"{SQL}/02-views.sql", "BULK 'late_readings'", "BULK 'telemetry'", "views and tables differ: ['late_readings']"),
    Change(f"{SQL}/02-views.sql", "FORMAT = 'DELTA'", "FORMAT = 'PARQUET'", "'FORMAT': 'PARQUET'"),
    Change(f"{SQL}/02-views.sql", "a.[date], a.[rule], a.[sensor_id], CASE", "a.[rule], a.[sensor_id], CASE",
           "numbers rows over all days"),
    Change(f"{SQL}/03-trends.sql", "GROUP BY a.[date], a.[rule], a.[machine_id], a.[sensor_id]",
           "GROUP BY a.[rule], a.[machine_id], a.[sensor_id]", "groups over all days"),
    Change(f"{SQL}/03-trends.sql", "MAX(e.[command_latency_micros])", "MAX(e.[command_latency])", "trends.machine_event_days"),
    Change(f"{SQL}/04-export.sql", "FROM lake.anomalies_latest", "FROM lake.anomalies", "export of anomalies reads lake.anomalies"),
    Change(f"{SQL}/04-export.sql", "[verdict], ", "", "export of outcomes: columns"),
    Change(f"{SQL}/05-dedicated-pool.sql", "COPY INTO lake.alerts (\n    [date], [alert_id]",
           "COPY INTO lake.alerts (\n    [alert_id], [date]",
           "load of alerts: columns"),
    Change(f"{SQL}/05-dedicated-pool.sql", "    [severity] INT,", "    [severity] BIGINT,", "alerts.severity is BIGINT"),
    Change(f"{SQL}/05-dedicated-pool.sql", "/<run>/outcomes/'", "/<run>/alerts/'", "outcomes is loaded from"),
    Change("cloud-aggregator/contract/lake.odcs.json", '{"name": "owner"', '{"name": "holder"',
           "lake.current_windows: columns ['holder', 'owner']"),
]
ROWS = [
    Change(f"{SQL}/02-views.sql", "    [value] FLOAT,\n", "    [value] REAL,\n", "telemetry: the view and the table differ in ['value']"),
    Change(f"{SQL}/02-views.sql", "ORDER BY a.[revision] DESC, a.[emitted_at] DESC", "ORDER BY a.[revision], a.[emitted_at] DESC",
           "lake.anomalies_latest"),
    Change(f"{SQL}/02-views.sql", "WHERE n.age = 1;", "WHERE n.age >= 1;", "lake.anomalies_latest has"),
    Change(f"{SQL}/02-views.sql", "PARTITION BY a.[date], a.[alert_id] ORDER BY a.[revision] DESC",
           "PARTITION BY a.[date], a.[alert_id] ORDER BY a.[revision]", "lake.alerts_latest"),
    Change(f"{SQL}/02-views.sql", "ORDER BY o.[timestamp] DESC", "ORDER BY o.[timestamp]", "lake.outcomes_latest"),
    Change(f"{SQL}/03-trends.sql", "WHERE t.[quality] IS NULL OR t.[quality] <> 'bad'",
           "WHERE t.[quality] IS NULL OR t.[quality] <> 'worse'",
           "trends.sensor_hours"),
    Change(f"{SQL}/03-trends.sql", "AVG(t.[value]) AS mean_value", "MIN(t.[value]) AS mean_value", "trends.sensor_hours: mean_value"),
    Change(f"{SQL}/03-trends.sql", "CASE WHEN a.[is_anomaly] = 0 THEN 1", "CASE WHEN a.[is_anomaly] = 1 THEN 1",
           "trends.anomaly_days: taken_back"),
    Change(f"{SQL}/03-trends.sql", "AND o.[verdict] <> 'note'", "AND o.[verdict] <> 'remark'", "trends.verdict_days"),
    Change(f"{SQL}/03-trends.sql", "AND (a.[machine_id] IS NULL OR o.[machine_id] = a.[machine_id])", "", "trends.verdict_days"),
    Change(f"{SQL}/03-trends.sql", "FROM lake.alerts_latest AS a\nGROUP", "FROM lake.alerts AS a\nGROUP", "trends.alert_days"),
    Change(f"{SQL}/03-trends.sql", "FROM lake.late_readings AS l", "FROM lake.telemetry AS l", "trends.input_days"),
]
PROJECT = [
    Change(f"{MODEL}/tables/Sensor days.tmdl", "\tcolumn unit\n", "\tcolumn units\n", "Sensor days: columns ['unit', 'units']"),
    Change(f"{MODEL}/tables/Sensor days.tmdl", "dataType: double", "dataType: int64", "double is due"),
    Change(f"{MODEL}/tables/Sensor days.tmdl", "'Sensor days'[sum_value]", "'Sensor days'[total]", "there is no Sensor days[total]"),
    Change(f"{MODEL}/tables/Sensor days.tmdl", "CALCULATE([Mean value]", "CALCULATE([Mean values]", "there is no measure Mean values"),
    Change(f"{MODEL}/tables/Sensor days.tmdl", "measure 'Mean value'", "measure Readings", "a measure and a column Readings"),
    Change(f"{MODEL}/tables/Sensor days.tmdl", "each [date] >= FirstDay", "each true", "reads all days"),
    Change(f"{MODEL}/tables/Alerts.tmdl", '"severity"', '"urgency"', "the view has no ['urgency']"),
    Change(f"{MODEL}/tables/Alerts.tmdl", 'Item = "alerts_latest"', 'Item = "alert"', "lake.alert"),
    Change(f"{MODEL}/relationships.tmdl", "toColumn: Machine.machine_id", "toColumn: Machine.name", "there is no Machine[name]"),
    Change(f"{MODEL}/relationships.tmdl", "fromColumn: 'Alert days'.machine_id", "fromColumn: 'Alert days'.rule", "relationships differ"),
    Change(f"{MODEL}/model.tmdl", "ref table Date\n", "", "the model refers to ['Date']"),
    Change(f"{MODEL}/expressions.tmdl", "expression Server", "expression Host", "there is no expression Server"),
    Change(f"{REPORT}/pages/*/visuals/*/visual.json", '"Property": "Drift"', '"Property": "Drifts"',
           "there is no Measure Sensor days[Drifts]"),
    Change(f"{REPORT}/pages/*/visuals/*/visual.json", '"Property": "sensor_id"', '"Property": "sensor"', "there is no Column"),
    Change(f"{REPORT}/pages/*/visuals/*/visual.json", '"Series"', '"Legend"', "Legend"),
    Change(f"{REPORT}/pages/*/visuals/*/visual.json", '"width": 992', '"width": 1992', "hangs over the page"),
    Change(f"{REPORT}/pages/*/visuals/*/visual.json", '"name": "', '"name": "x', "would be skipped"),
]


def copied(root):
    folder = pathlib.Path(tempfile.mkdtemp())
    for name in READ:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("*tests*", "released"))
    return folder


def applied(root, change):
    """Makes the change, gives the file and its text before."""
    for path in sorted(root.glob(change.files)):
        text = path.read_text(encoding="utf-8")
        if change.old in text:
            path.write_text(text.replace(change.old, change.new, 1), encoding="utf-8")
            return path, text
    raise SystemExit(f"{change.files} has no {change.old!r}: this mutation tests nothing any more")


def unnoticed(root, changes, check):
    for change in changes:
        path, text = applied(root, change)
        try:
            check(root)
            yield f"{path.name}: {change.old!r} -> {change.new!r} is no fault"
        except Fault as fault:
            if change.fault not in str(fault):
                yield f"{path.name}: {change.old!r} -> {change.new!r} is another fault: {fault}"
        path.write_text(text, encoding="utf-8")


def main():
    root, lake = pathlib.Path(sys.argv[1]), sys.argv[2]
    copy = copied(root)
    try:
        rows = lambda root: expected.check(check_synapse.synapse.views(root / SQL), lake)  # noqa: E731
        faults = list(unnoticed(copy, TEXTS, check_synapse.check_texts)) + list(unnoticed(copy, ROWS, rows))
        faults += unnoticed(copy, PROJECT, check_power_bi.check)
    finally:
        shutil.rmtree(copy)
    if faults:
        raise SystemExit("\n".join(faults))
    print(f"{len(TEXTS) + len(ROWS) + len(PROJECT)} changes are noticed")


main()

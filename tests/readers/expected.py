"""What the views must say of a lake, computed row by row of its tables, without SQL.

A lake in which nothing was corrected would let a view pass that ignores revisions: such a lake is refused.
"""

import collections
import datetime
import json
import math
import statistics

from deltalake import DeltaTable

import canonical
import synapse
from synapse import ensure

UTC = datetime.timezone.utc
VERDICTS = {"confirmed", "false-alarm"}
# Of the types of Delta, without lengths.
SQL_TYPES = {"string": "VARCHAR", "map": "VARCHAR", "date": "DATE", "double": "FLOAT", "long": "BIGINT", "integer": "INT",
             "boolean": "BIT", "timestamp": "DATETIME2", "binary": "VARBINARY"}


def rows_of(table):
    return table.to_pylist()


def naive(value):
    """Times of the views have no zone."""
    if isinstance(value, datetime.datetime) and value.tzinfo:
        return value.astimezone(UTC).replace(tzinfo=None)
    return value


def newest(rows, key, newness):
    best = {}
    for row in rows:
        held = best.get(key(row))
        if held is None or newness(row) > newness(held):
            best[key(row)] = row
    return list(best.values())


def anomalies_latest(tables):
    def key(row):
        subject = ("sensor", row["sensor_id"]) if row["sensor_id"] is not None else ("machine", row["machine_id"])
        return row["rule"], subject, row["window_start"]

    return newest(tables["anomalies"], key, lambda row: row["revision"])


def alerts_latest(tables):
    return newest(tables["alerts"], lambda row: row["alert_id"], lambda row: row["revision"])


def outcomes_latest(tables):
    return newest(tables["outcomes"], lambda row: row["outcome_id"],
                  lambda row: (row["timestamp"], row["source_offset"], row["source_partition"]))


def grouped(rows, *names):
    groups = collections.defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return [(dict(zip(names, key)), group) for key, group in groups.items()]


def statistics_of(group):
    values = [row["value"] for row in group]
    return {"readings": len(values), "sum_value": math.fsum(values), "min_value": min(values), "max_value": max(values),
            "mean_value": math.fsum(values) / len(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def good(tables):
    return [row for row in tables["telemetry"] if row["quality"] != "bad"]


def sensor_hours(tables):
    rows = [dict(row, hour_start=row["timestamp"].replace(minute=0, second=0, microsecond=0)) for row in good(tables)]
    groups = grouped(rows, "date", "hour_start", "metric_type", "machine_id", "sensor_id", "unit")
    return [key | statistics_of(group) for key, group in groups]


def sensor_days(tables):
    def times(group):
        stamps = [row["timestamp"] for row in group]
        return {"first_reading": min(stamps), "last_reading": max(stamps)}

    groups = grouped(good(tables), "date", "metric_type", "machine_id", "sensor_id", "unit")
    return [key | statistics_of(group) | times(group) for key, group in groups]


def anomaly_days(tables):
    def figures(group):
        hot = [row for row in group if row["is_anomaly"]]
        return {"anomalies": len(hot), "matches": sum(row["count"] for row in hot), "taken_back": len(group) - len(hot),
                "corrected": sum(row["revision"] > 1 for row in group),
                "max_value": max((row["max_value"] for row in hot), default=None),
                "min_value": min((row["min_value"] for row in hot), default=None)}

    groups = grouped(anomalies_latest(tables), "date", "rule", "machine_id", "sensor_id")
    return [key | figures(group) for key, group in groups]


def alert_days(tables):
    def seconds(group):
        waits = [row["resolved_at"].replace(microsecond=0) - row["fired_at"].replace(microsecond=0)
                 for row in group if row["resolved_at"] is not None]
        return sum(int(wait.total_seconds()) for wait in waits) if waits else None

    def figures(group):
        return {"alerts": len(group), "resolved": sum(row["state"] == "resolved" for row in group),
                "quiet": sum(row["suppressed_by"] is not None or row["historical"] for row in group),
                "findings": sum(row["findings"] for row in group), "seconds_to_resolve": seconds(group)}

    groups = grouped(alerts_latest(tables), "date", "rule", "severity", "machine_id")
    return [key | figures(group) for key, group in groups]


def machine_event_days(tables):
    def present(group, name):
        return [row[name] for row in group if row[name] is not None]

    def figures(group):
        commands, stops = present(group, "command_latency_micros"), present(group, "confirmation_latency_micros")
        records = present(group, "record_count")
        return {"events": len(group), "mean_command_latency_micros": sum(commands) / len(commands) if commands else None,
                "max_command_latency_micros": max(commands, default=None),
                "max_confirmation_latency_micros": max(stops, default=None), "records": sum(records) if records else None}

    return [key | figures(group) for key, group in grouped(tables["machine_events"], "date", "machine_id", "event_type")]


def verdict_days(tables):
    outcomes = [row for row in outcomes_latest(tables) if row["verdict"] != "note"]
    alerts = []
    for alert in alerts_latest(tables):
        if alert["suppressed_by"] is not None:
            continue
        about = [row for row in outcomes if row["alert_id"] == alert["alert_id"]
                 and (alert["machine_id"] is None or row["machine_id"] == alert["machine_id"])]
        about.sort(key=lambda row: (row["timestamp"], row["source_offset"], row["source_partition"]))
        alerts.append(dict(alert, verdict=about[-1]["verdict"] if about else None))

    def figures(group):
        verdicts = [row["verdict"] for row in group]
        return {"alerts": len(group), "confirmed": sum(verdict in ("confirmed", "part-replaced") for verdict in verdicts),
                "false_alarms": verdicts.count("false-alarm"), "without_verdict": verdicts.count(None)}

    return [key | figures(group) for key, group in grouped(alerts, "date", "rule", "machine_id")]


def input_days(tables):
    found = []
    for kind, table, reason in (("counted", "telemetry", "metric_type"), ("late", "late_readings", "metric_type"),
                                ("refused", "dead_letters", "reason")):
        for key, group in grouped(tables[table], "date", reason):
            found.append({"date": key["date"], "kind": kind, "reason": key[reason], "records": len(group)})
    return found


def machine_days(tables):
    of = [row for name in ("telemetry", "alerts", "machine_events", "anomalies") for row in tables[name]]
    return [key for key, _ in grouped([row for row in of if row["machine_id"] is not None], "date", "machine_id")]


VIEWS = {"lake.anomalies_latest": anomalies_latest, "lake.alerts_latest": alerts_latest, "lake.outcomes_latest": outcomes_latest,
         "trends.sensor_hours": sensor_hours, "trends.sensor_days": sensor_days, "trends.anomaly_days": anomaly_days,
         "trends.alert_days": alert_days, "trends.machine_event_days": machine_event_days, "trends.verdict_days": verdict_days,
         "trends.input_days": input_days, "trends.machine_days": machine_days}


def is_telling(tables):
    """The lake has what a wrong view would get wrong."""
    has = {
        "a corrected window": any(row["revision"] > 1 for row in tables["anomalies"]),
        "a window that was taken back": any(not row["is_anomaly"] for row in tables["anomalies"]),
        "a resolved alert": any(row["state"] == "resolved" for row in tables["alerts"]),
        "a corrected outcome": len(outcomes_latest(tables)) < len(tables["outcomes"]),
        "a note": any(row["verdict"] == "note" for row in tables["outcomes"]),
        "a reading of bad quality": any(row["quality"] == "bad" for row in tables["telemetry"]),
        "readings of two days": len({row["date"] for row in tables["telemetry"]}) > 1,
        "a late reading": bool(tables["late_readings"]),
        "a dead letter": bool(tables["dead_letters"]),
        "a stop": any(row["command_latency_micros"] is not None for row in tables["machine_events"]),
        "a newer outcome about another machine, with another verdict": any(
            row["machine_id"] == alert["machine_id"] != other["machine_id"] and row["timestamp"] < other["timestamp"]
            and row["alert_id"] == alert["alert_id"] == other["alert_id"] and {row["verdict"], other["verdict"]} == VERDICTS
            for row in tables["outcomes"] for other in tables["outcomes"] for alert in tables["alerts"]),
    }
    missing = [what for what, there in has.items() if not there]
    ensure(not missing, f"the lake tells nothing: it lacks {', '.join(missing)}")


def equal(left, right):
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)
    return left == right


def order(row):
    """Rows in the order of what is no measurement."""
    return [(value is not None, str(value)) for value in row if not isinstance(value, float)]


def quoted(name):
    return f'"{name}"'


def compare(view, names, found, due):
    ensure(len(found) == len(due), f"{view} has {len(found)} rows, {len(due)} are due")
    due = [tuple(naive(row[name]) for name in names) for row in due]
    for left, right in zip(sorted(found, key=order), sorted(due, key=order)):
        for name, one, other in zip(names, left, right):
            ensure(equal(one, other), f"{view}: {name} is {one!r}, {other!r} is due, in {left}")


def check_schema(rowset, folder):
    """The view's columns are those of the table as its log has them."""
    fields = {field.name: json.loads(field.type.to_json()) for field in DeltaTable(folder).schema().fields}
    kinds = {name: kind if isinstance(kind, str) else kind["type"] for name, kind in fields.items()}
    due = {name: SQL_TYPES[kind] for name, kind in kinds.items() if kind != "struct"}
    written = {name: kind.split("(")[0] for name, (kind, _) in rowset.columns.items()}
    differing = sorted(name for name in due.keys() | written.keys() if due.get(name) != written.get(name))
    ensure(not differing, f"{rowset.table}: the view and the table differ in {differing}")


def check(found, lake):
    """Compares every view with what is due. Gives the number of rows of each."""
    folders = canonical.tables_of(lake)
    for view in found.values():
        if view.rowset and view.rowset.table in folders:
            check_schema(view.rowset, folders[view.rowset.table])
    arrow = {name: DeltaTable(folder).to_pyarrow_table() for name, folder in folders.items()}
    tables = {name: rows_of(table) for name, table in arrow.items()}
    is_telling(tables)
    connection = synapse.connect(found, arrow)
    counts = {}
    for view in found.values():
        names = list(synapse.described(connection, view.name))
        rows = connection.execute(f"SELECT * FROM {view.name}").fetchall()
        if view.rowset:
            # The text of a map is DuckDB's own here, and the pool's there.
            plain = [name for name in names if name != "features"]
            rows = connection.execute(f"SELECT {', '.join(map(quoted, plain))} FROM {view.name}").fetchall()
            compare(view.name, plain, rows, tables.get(view.rowset.table, []))
        else:
            ensure(view.name in VIEWS, f"nothing says what {view.name} is to hold")
            compare(view.name, names, rows, VIEWS[view.name](tables))
        counts[view.name] = len(rows)
    return counts

"""Holds the T-SQL scripts against the contract of the lake, and their views against the lake itself.

    check_synapse.py ROOT [LAKE]

ROOT is the repository. Without LAKE: every statement is T-SQL, every table of the contract has a view of its columns in its types, no more
and no less, copies and loads name the same columns. With LAKE: the views on DuckDB give the rows that expected.py computes of the tables.
"""

import json
import pathlib
import re
import sys

import sqlglot
from sqlglot import expressions as e

import synapse
from synapse import COLLATION, Fault, ensure

FOLDER = "deployment-manifests/cloud/synapse"
CONTRACT = "cloud-aggregator/contract/lake.odcs.json"
TYPES = {"date": "DATE", "double": "FLOAT", "long": "BIGINT", "integer": "INT", "boolean": "BIT", "timestamp": "DATETIME2(6)",
         "binary": "VARBINARY(MAX)"}
# Longest texts in bytes, as the programs have them: a constant, its file, and what is put before the text.
MODEL, OUTCOME = "shared-proto/src/model.rs", "shared-proto/src/model/outcome.rs"
NAME = ("IDENTIFIER_BYTES_MAX", MODEL, 0)
RULE = ("RULE_NAME_BYTES_MAX", "cloud-aggregator/core/src/settings.rs", 0)
LIMITS = {
    "sensor_id": NAME, "machine_id": NAME, "device_id": NAME, "metric_type": ("METRIC_TYPE_BYTES_MAX", MODEL, 0),
    "unit": ("UNIT_BYTES_MAX", MODEL, 0), "rule": RULE, "alert_id": ("ALERT_ID_DIGITS", OUTCOME, 0),
    "outcome_id": ("OUTCOME_ID_BYTES_MAX", OUTCOME, 0), "ticket_id": ("TICKET_ID_BYTES_MAX", OUTCOME, 0),
    "part": ("PART_BYTES_MAX", OUTCOME, 0), "note": ("NOTE_BYTES_MAX", OUTCOME, 0), "reported_by": ("REPORTER_BYTES_MAX", OUTCOME, 0),
    "outcomes.trip_id": ("TRIP_ID_BYTES_MAX", OUTCOME, 0),
    "alerts.detail": ("DETAIL_BYTES_MAX", "cloud-aggregator/core/src/alert/machine.rs", 0),
    "suppressed_by": ("SUPPRESSION_TEXT_BYTES_MAX", "cloud-aggregator/core/src/alert/settings.rs", len("maintenance:")),
}
# Topics of Kafka, those with a partition, a rule's threshold, and a reason, which is a word of the programs.
BYTES = {"source_topic": 249, "owner": 249 + 1 + 10, "threshold": 128, "reason": 32}
# What of a machine event its producer chooses freely.
UNBOUNDED = {"machine_events.rule"}
# One of these tables has no own columnar copy of its map.
NOT_COPIED = {"features"}
NEWEST = {"anomalies": "anomalies_latest", "alerts": "alerts_latest", "outcomes": "outcomes_latest"}
# A report may be corrected on another day.
DAY_IS_NO_KEY = {"lake.outcomes_latest"}


def constant(root, name, path):
    found = re.search(rf"pub const {name}: usize = ([0-9_]+);", (root / path).read_text(encoding="utf-8"))
    ensure(found, f"{path} has no {name} any more")
    return int(found.group(1).replace("_", ""))


def text_bytes(root, table, column):
    """How many bytes a text may have, None if nothing bounds it."""
    name = column["name"]
    values = [value for more in column.get("customProperties", []) if more["property"] == "values" for value in more["value"]]
    if values:
        return max(len(value.encode()) for value in values)
    if f"{table}.{name}" in UNBOUNDED:
        return None
    limit = LIMITS.get(f"{table}.{name}", LIMITS.get(name))
    if limit:
        return constant(root, *limit[:2]) + limit[2]
    return BYTES.get(name)


def check_type(root, table, column, found):
    """A column of a view or of a table is as the contract has it."""
    place, kind, (written, collation) = f"{table}.{column['name']}", column["physicalType"], found
    if kind != "string" and not kind.startswith("map<"):
        ensure(written == TYPES[kind] and collation is None, f"{place} is {written}, {TYPES[kind]} is due")
        return
    ensure(collation == COLLATION, f"{place} has the collation {collation}")
    length = re.fullmatch(r"VARCHAR\((\d+|MAX)\)", written)
    ensure(length, f"{place} is {written}, VARCHAR is due")
    limit = None if kind.startswith("map<") else text_bytes(root, table, column)
    if limit is None:
        ensure(length.group(1) == "MAX", f"{place} is {written}, and nothing bounds it")
    else:
        ensure(length.group(1) != "MAX", f"{place} is {written}, {limit} bytes are its bound")
        ensure(limit <= int(length.group(1)) <= 4 * limit, f"{place} is {written}, {limit} bytes are its bound")


def check_view(root, table, view):
    """A view has the columns of a table: all but structs, whose fields stand beside them."""
    rowset = view.rowset
    ensure(rowset, f"{view.name} reads no rowset")
    ensure(rowset.table == table["name"], f"{view.name} reads {rowset.table}")
    ensure(rowset.options == {"DATA_SOURCE": "lake", "FORMAT": "DELTA"}, f"{view.name}: {rowset.options}")
    due = {column["name"]: column for column in table["properties"] if not column["physicalType"].startswith("struct<")}
    for column in table["properties"]:
        if column["name"] not in due:
            fields = re.findall(r"(\w+):", column["physicalType"])
            ensure(all(f"{column['name']}_{field}" in due for field in fields), f"{view.name}: fields of {column['name']} are lost")
    ensure(list(rowset.columns) == list(due), f"{view.name}: columns {sorted(set(rowset.columns) ^ set(due)) or 'in another order'}")
    for name, found in rowset.columns.items():
        check_type(root, table["name"], due[name], found)
    selected = [column.alias_or_name for column in view.query.selects]
    ensure(selected == list(due), f"{view.name}: selects {sorted(set(selected) ^ set(due)) or 'in another order'}")


def check_days(found):
    """A condition on `date` reaches the files: it is among what every view groups or numbers by."""
    for view in found.values():
        for window in view.query.find_all(e.Window):
            keys = [column.name for key in window.args["partition_by"] for column in key.find_all(e.Column)]
            ensure("date" in keys or view.name in DAY_IS_NO_KEY, f"{view.name} numbers rows over all days")
        for group in view.query.find_all(e.Group):
            keys = [key.name for key in group.expressions if isinstance(key, e.Column)]
            ensure("date" in keys, f"{view.name} groups over all days")


def names(items):
    return [item.name for item in items]


def check_copies(root, folder, found, contract):
    """The export, the tables of the dedicated pool and what loads them have the columns of the views."""
    exported, created, loaded = {}, {}, {}
    for batch in synapse.batches(folder / "04-export.sql"):
        external = re.match(r"CREATE EXTERNAL TABLE exported\.(\w+)\s+WITH \(LOCATION = '<run>/(\w+)/'.*?\)\s+AS\s+(SELECT.*)", batch, re.S)
        if external:
            name, place, query = external.groups()
            ensure(name == place, f"export of {name} goes to {place}")
            query = sqlglot.parse_one(query, read="tsql")
            source = query.find(e.Table)
            ensure(source.sql() == f"lake.{NEWEST.get(name, name)}", f"export of {name} reads {source.sql()}")
            exported[name] = [column.alias_or_name for column in query.selects]
    for batch in synapse.batches(folder / "05-dedicated-pool.sql"):
        statement = re.match(r"(?:--.*\n|\s)*(CREATE TABLE|COPY INTO) lake\.(\w+) \(\n(.*?)\n\)\s*\n(.*)", batch, re.S)
        if not statement:
            continue
        what, name, columns, rest = statement.groups()
        if what == "CREATE TABLE":
            created[name] = synapse.columns_of(columns)
            ensure(("MAX" in columns) == ("CLUSTERED COLUMNSTORE" not in rest) or name.endswith("_new"), f"{name}: {rest.strip()}")
        else:
            copy = sqlglot.parse_one(batch, read="tsql")
            loaded[name] = names(copy.this.expressions)
            ensure(f"/<run>/{name.removesuffix('_new')}/'" in rest, f"{name} is loaded from {rest[:120]}")
    for table in contract["schema"]:
        name = table["name"]
        if name == "current_windows":
            continue
        due = [column for column in found[f"lake.{name}"].rowset.columns if column not in NOT_COPIED]
        ensure(exported.get(name) == due, f"export of {name}: columns {exported.get(name)}")
        for made in [name] + ["telemetry_new"] * (name == "telemetry"):
            ensure(list(created.get(made, {})) == due, f"table {made}: columns {list(created.get(made, {}))}")
            for column in table["properties"]:
                if column["name"] in due:
                    check_type(root, name, column, created[made][column["name"]])
        into = "telemetry_new" if name == "telemetry" else name
        ensure(loaded.get(into) == due, f"load of {into}: columns {loaded.get(into)}")


def check_texts(root):
    """All that needs no lake. Gives the views."""
    folder = synapse.folder_of(root / FOLDER)
    contract = json.loads((root / CONTRACT).read_text(encoding="utf-8"))
    for path in sorted(folder.glob("*.sql")):
        synapse.check_grammar(path)
    found = synapse.views(folder)
    tables = {table["name"]: table for table in contract["schema"]}
    rowsets = {view.rowset.table for view in found.values() if view.rowset}
    ensure(rowsets == set(tables), f"views and tables differ: {sorted(rowsets ^ set(tables))}")
    for name, table in tables.items():
        ensure(f"lake.{name}" in found, f"no view lake.{name}")
        check_view(root, table, found[f"lake.{name}"])
    check_days(found)
    check_copies(root, folder, found, contract)
    synapse.connect(found, {})
    return found


def main():
    root = pathlib.Path(sys.argv[1])
    try:
        found = check_texts(root)
        print(f"{len(found)} views are as the contract has them")
        for lake in sys.argv[2:]:
            import expected

            for name, rows in expected.check(found, lake).items():
                print(f"{name}: {rows} rows as expected")
    except Fault as fault:
        raise SystemExit(f"{FOLDER}: {fault}") from None


if __name__ == "__main__":
    main()

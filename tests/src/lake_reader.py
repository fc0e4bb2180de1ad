"""Reads Delta tables without the program that wrote them: the _delta_log as JSON, the Parquet files with DuckDB.

    lake_reader.py query LAKE SQL      rows of SQL over the lake's tables, a JSON object a line
    lake_reader.py latency LAKE TABLE SKIP
                                       [p50, p99, longest]: seconds from a row's timestamp to the commit that brought it, by the
                                       time of the file in the log; rows of the first SKIP seconds are left out
    lake_reader.py protocol LAKE       {"table": {"reader": 1, "writer": 2, "version": 7, "files": 3}, ...}

A table is a folder of LAKE with a _delta_log. Only files that the log names and has not removed are read; partition
columns come from the log, not from the path.
"""

import json
import os
import re
import sys
import urllib.parse

import duckdb

TYPES = {
    "string": "VARCHAR", "date": "DATE", "long": "BIGINT", "integer": "INTEGER", "double": "DOUBLE", "float": "FLOAT",
    "boolean": "BOOLEAN", "timestamp": "TIMESTAMPTZ", "binary": "BLOB", "short": "SMALLINT", "byte": "TINYINT",
}


def fold_log(table):
    """Schema, protocol, version and active files (path -> partition values) of a table."""
    log = os.path.join(table, "_delta_log")
    versions = sorted(name for name in os.listdir(log) if re.fullmatch(r"\d{20}\.json", name))
    for expected, name in enumerate(versions):
        if int(name[:20]) != expected:
            raise SystemExit(f"{table}: version {expected} is missing from the log")
    schema, protocol, files = None, None, {}
    for name in versions:
        with open(os.path.join(log, name), encoding="utf-8") as lines:
            for line in lines:
                action = json.loads(line)
                if "metaData" in action:
                    schema = json.loads(action["metaData"]["schemaString"])
                elif "protocol" in action:
                    protocol = action["protocol"]
                elif "remove" in action:
                    files.pop(action["remove"]["path"], None)
                elif "add" in action:
                    if action["add"]["path"] in files:
                        raise SystemExit(f"{table}: {action['add']['path']} is added twice")
                    files[action["add"]["path"]] = action["add"]["partitionValues"]
    return schema, protocol, len(versions) - 1, files


def sql_type(kind):
    if isinstance(kind, str):
        return TYPES.get(kind, "DECIMAL(38, 9)")
    if kind["type"] == "map":
        return f"MAP({sql_type(kind['keyType'])}, {sql_type(kind['valueType'])})"
    if kind["type"] == "array":
        return f"{sql_type(kind['elementType'])}[]"
    fields = ", ".join(f'"{field["name"]}" {sql_type(field["type"])}' for field in kind["fields"])
    return f"STRUCT({fields})"


def define(connection, name, table):
    """Creates a view `name` over a table's active files."""
    schema, _, _, files = fold_log(table)
    fields = schema["fields"]
    if not files:
        columns = ", ".join(f'CAST(NULL AS {sql_type(field["type"])}) AS "{field["name"]}"' for field in fields)
        connection.execute(f'CREATE VIEW "{name}" AS SELECT {columns} WHERE false')
        return
    partitioned = {column for values in files.values() for column in values}
    rows = []
    for path, values in files.items():
        full = os.path.join(table, urllib.parse.unquote(path))
        rows.append([full] + [values.get(column) for column in sorted(partitioned)])
    columns = ", ".join(f'"{column}" VARCHAR' for column in sorted(partitioned))
    connection.execute(f'CREATE TEMP TABLE "{name}__files" (filename VARCHAR{", " + columns if columns else ""})')
    marks = ", ".join("?" for _ in rows[0])
    connection.executemany(f'INSERT INTO "{name}__files" VALUES ({marks})', rows)
    selected = ", ".join(
        f'CAST(f."{field["name"]}" AS {sql_type(field["type"])}) AS "{field["name"]}"'
        if field["name"] in partitioned else f'p."{field["name"]}"' for field in fields)
    paths = ", ".join("'" + row[0].replace("'", "''") + "'" for row in rows)
    connection.execute(
        f'CREATE VIEW "{name}" AS SELECT {selected} FROM read_parquet([{paths}], union_by_name = true, '
        f'filename = true, hive_partitioning = false) p JOIN "{name}__files" f ON p.filename = f.filename')


def tables_of(lake):
    if not os.path.isdir(lake):
        return {}
    folders = {name: os.path.join(lake, name) for name in sorted(os.listdir(lake))}
    return {name: path for name, path in folders.items() if os.path.isdir(os.path.join(path, "_delta_log"))}


def latency(table, skip):
    """Quantiles over all rows that commits have added, in seconds."""
    log = os.path.join(table, "_delta_log")
    added = []
    for name in sorted(name for name in os.listdir(log) if re.fullmatch(r"\d{20}\.json", name)):
        path = os.path.join(log, name)
        with open(path, encoding="utf-8") as lines:
            actions = [json.loads(line) for line in lines]
        adds = [action["add"] for action in actions if "add" in action and action["add"]["dataChange"]]
        added += [(os.path.join(table, urllib.parse.unquote(add["path"])), os.stat(path).st_mtime) for add in adds]
    connection = duckdb.connect()
    connection.execute("CREATE TEMP TABLE added (filename VARCHAR, committed DOUBLE)")
    connection.executemany("INSERT INTO added VALUES (?, ?)", added)
    row = connection.execute(
        "WITH r AS (SELECT epoch_us(timestamp) / 1e6 AS sent, committed FROM read_parquet(?, filename = true, "
        "union_by_name = true, hive_partitioning = false) JOIN added USING (filename)) "
        "SELECT quantile_disc(committed - sent, [0.5, 0.99, 1.0]) FROM r WHERE sent >= (SELECT min(sent) FROM r) + ?",
        [[path for path, _ in added], skip]).fetchone()
    return row[0]


def main():
    if len(sys.argv) == 5 and sys.argv[1] == "latency":
        print(json.dumps(latency(os.path.join(sys.argv[2], sys.argv[3]), float(sys.argv[4]))))
        return
    if len(sys.argv) < 3 or sys.argv[1] not in ("query", "protocol") or (sys.argv[1] == "query" and len(sys.argv) != 4):
        raise SystemExit(__doc__)
    action, lake = sys.argv[1:3]
    tables = tables_of(lake)
    if not tables and action == "query":
        raise SystemExit(f"{lake} holds no Delta table (yet)")
    if action == "protocol":
        answer = {}
        for name, table in tables.items():
            _, protocol, version, files = fold_log(table)
            answer[name] = {"reader": protocol["minReaderVersion"], "writer": protocol["minWriterVersion"],
                            "version": version, "files": len(files)}
        print(json.dumps(answer))
        return
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for name, table in tables.items():
        define(connection, name, table)
    try:
        rows = connection.execute(f"SELECT CAST(to_json(r) AS VARCHAR) FROM ({sys.argv[3]}) r").fetchall()
    except duckdb.Error as error:
        raise SystemExit(f"{error}\ntables of {lake}: {', '.join(tables)}") from None
    for (row,) in rows:
        print(row)


main()

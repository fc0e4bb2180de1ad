"""Reads Delta tables without the program that wrote them: the _delta_log as JSON, the Parquet files with DuckDB.

    lake_reader.py query LAKE SQL      rows of SQL over the lake's tables, a JSON object a line
    lake_reader.py latency LAKE TABLE SKIP
                                       [p50, p99, longest]: seconds from a row's timestamp to the commit that brought it, by the
                                       time of the file in the log; rows of the first SKIP seconds are left out
    lake_reader.py protocol LAKE       {"table": {"reader": 1, "writer": 2, "version": 7, "files": 3}, ...}
    lake_reader.py create LAKE         makes the container of a lake in Azurite
    lake_reader.py touched LAKE TABLE COLUMN VALUE FROM TO
                                       {"files": [2, 90], "row_groups": [3, 700], "bytes": [.., ..]}: how many of how many a
                                       query for COLUMN = VALUE and FROM <= timestamp < TO must read, by date partition, the
                                       log's statistics, and those of the row groups

A table is a folder of LAKE with a _delta_log. Only files that the log names and has not removed are read; partition
columns come from the log, not from the path. LAKE is a folder, or http://…/devstoreaccount1/CONTAINER/FOLDER of Azurite: then
its blobs are copied to a folder first.
"""

import base64
import email.utils
import hashlib
import hmac
import json
import os
import re
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree

import duckdb

TYPES = {
    "string": "VARCHAR", "date": "DATE", "long": "BIGINT", "integer": "INTEGER", "double": "DOUBLE", "float": "FLOAT",
    "boolean": "BOOLEAN", "timestamp": "TIMESTAMPTZ", "binary": "BLOB", "short": "SMALLINT", "byte": "TINYINT",
}


def checkpoint_actions(log, version):
    """Protocol, metadata and files of a checkpoint in one Parquet file, as the actions of a commit."""
    path = os.path.join(log, f"{version:020}.checkpoint.parquet").replace("'", "''")
    rows = duckdb.sql(
        "SELECT to_json(protocol), to_json(metaData), to_json(add) FROM "
        f"read_parquet('{path}') WHERE protocol IS NOT NULL OR metaData IS NOT NULL OR add IS NOT NULL").fetchall()
    for row in rows:
        for name, text in zip(("protocol", "metaData", "add"), row):
            value = json.loads(text) if text else None
            if value and any(field is not None for field in value.values()):
                if name == "add" and isinstance(value["partitionValues"], list):
                    value["partitionValues"] = {pair["key"]: pair["value"] for pair in value["partitionValues"]}
                yield {name: value}


def commit_actions(log, version):
    with open(os.path.join(log, f"{version:020}.json"), encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def fold_log(table):
    """Schema, protocol, version and active files (path -> add) of a table."""
    log = os.path.join(table, "_delta_log")
    names = os.listdir(log)
    versions = sorted(int(name[:20]) for name in names if re.fullmatch(r"\d{20}\.json", name))
    checkpoints = [int(name[:20]) for name in names if re.fullmatch(r"\d{20}\.checkpoint\.parquet", name)]
    # From the first commit, if it is still there: a checkpoint is then not needed, and not trusted.
    start, sources = -1, []
    if versions[0] > 0:
        start = min((version for version in checkpoints if version >= versions[0] - 1), default=None)
        if start is None:
            raise SystemExit(f"{table}: the log begins with version {versions[0]} and has no checkpoint")
        sources.append(checkpoint_actions(log, start))
    later = [version for version in versions if version > start]
    for expected, version in enumerate(later, start + 1):
        if version != expected:
            raise SystemExit(f"{table}: version {expected} is missing from the log")
        sources.append(commit_actions(log, version))
    schema, protocol, files = None, None, {}
    for actions in sources:
        for action in actions:
            if "metaData" in action:
                schema = json.loads(action["metaData"]["schemaString"])
            elif "protocol" in action:
                protocol = action["protocol"]
            elif "remove" in action:
                if files.pop(action["remove"]["path"], None) is None:
                    raise SystemExit(f"{table}: {action['remove']['path']} is removed and was not there")
            elif "add" in action:
                if action["add"]["path"] in files:
                    raise SystemExit(f"{table}: {action['add']['path']} is added twice")
                files[action["add"]["path"]] = action["add"]
    return schema, protocol, max(versions[-1], start), files


def may_hold(low, high, least, most):
    """Whether a range of a file may hold values of a query; without statistics it may."""
    return low is None or high is None or (low <= most and high >= least)


def touched(lake, name, column, value, begin, end):
    """See the head of this file."""
    _, _, _, files = fold_log(os.path.join(lake, name))
    counts = {"files": [0, 0], "row_groups": [0, 0], "bytes": [0, 0]}
    for path, add in files.items():
        stats = json.loads(add["stats"] or "{}")
        low, high = stats.get("minValues", {}), stats.get("maxValues", {})
        reads = begin[:10] <= add["partitionValues"]["date"] <= end[:10]
        reads = reads and may_hold(low.get(column), high.get(column), value, value)
        reads = reads and may_hold(low.get("timestamp"), high.get("timestamp"), begin, end)
        full = os.path.join(lake, name, urllib.parse.unquote(path)).replace("'", "''")
        groups = duckdb.execute(
            "SELECT row_group_id, any_value(row_group_bytes), max(stats_min_value) FILTER (path_in_schema = ?), "
            "max(stats_max_value) FILTER (path_in_schema = ?), max(stats_min_value) FILTER (path_in_schema = 'timestamp'), "
            f"max(stats_max_value) FILTER (path_in_schema = 'timestamp') FROM parquet_metadata('{full}') GROUP BY 1",
            [column, column]).fetchall()
        read_groups = [
            group for group in groups if reads and may_hold(group[2], group[3], value, value)
            and may_hold(iso(group[4]), iso(group[5]), begin, end)]
        for kind, read, all_of_them in (
                ("files", int(reads), 1), ("row_groups", len(read_groups), len(groups)),
                ("bytes", sum(group[1] for group in read_groups), sum(group[1] for group in groups))):
            counts[kind][0] += read
            counts[kind][1] += all_of_them
    return counts


def iso(text):
    """`2026-03-01 08:15:30.5+00` as the log writes it."""
    return None if text is None else re.sub(r"([+]00(:00)?)?$", "Z", text.replace(" ", "T"), count=1)


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
    partitioned = {column for add in files.values() for column in add["partitionValues"]}
    rows = []
    for path, add in files.items():
        values = add["partitionValues"]
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


def call(method, url, **query):
    """A request with the shared key of Azurite's one account, which its documentation publishes."""
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    date = email.utils.formatdate(usegmt=True)
    resource = f"/{account}" + urllib.parse.urlsplit(url).path
    resource += "".join(f"\n{name}:{value}" for name, value in sorted(query.items()))
    text = f"{method}" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n{resource}"
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06",
               "Authorization": f"SharedKey {account}:{base64.b64encode(digest).decode()}"}
    full = url + ("?" + urllib.parse.urlencode(query) if query else "")
    request = urllib.request.Request(full, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def container_of(url):
    """http://host/account/container and the folder in it."""
    parts = urllib.parse.urlsplit(url)
    account, container, folder = (parts.path.strip("/").split("/", 2) + [""])[:3]
    return f"{parts.scheme}://{parts.netloc}/{account}/{container}", folder


def mirror(url, folder):
    """Copies the blobs of a lake. The log of each table comes first: what it names is there."""
    container, prefix = container_of(url)
    names, marker = [], ""
    while True:
        query = {"restype": "container", "comp": "list", "prefix": prefix}
        listed = xml.etree.ElementTree.fromstring(call("GET", container, **query, **({"marker": marker} if marker else {})))
        names += [blob.findtext("Name") for blob in listed.iter("Blob")]
        marker = listed.findtext("NextMarker")
        if not marker:
            break
    for name in names:
        if name.endswith(".tmp") or "/_state/" in name:
            continue
        try:
            content = call("GET", f"{container}/{urllib.parse.quote(name)}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            # Deleted since it was listed; whoever needs it all the same notices.
            continue
        path = os.path.join(folder, os.path.relpath(name, prefix))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "create":
        call("PUT", container_of(sys.argv[2])[0], restype="container")
        return
    if len(sys.argv) >= 3 and sys.argv[2].startswith("http://"):
        with tempfile.TemporaryDirectory() as folder:
            mirror(sys.argv[2], folder)
            sys.argv[2] = folder
            read()
        return
    read()


def read():
    arguments = {"query": 4, "protocol": 3, "touched": 8, "latency": 5}
    if len(sys.argv) < 2 or arguments.get(sys.argv[1]) != len(sys.argv):
        raise SystemExit(__doc__)
    action, lake = sys.argv[1:3]
    if action == "latency":
        print(json.dumps(latency(os.path.join(lake, sys.argv[3]), float(sys.argv[4]))))
        return
    if action == "touched":
        print(json.dumps(touched(lake, *sys.argv[3:])))
        return
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

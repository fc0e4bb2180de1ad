"""Reads every table of lakes through lake_reader.py (the log as JSON, the files with DuckDB): read_duckdb.py LAKE…, see canonical.py.

Where the log begins with a checkpoint, lake_reader.py reads that, too.
"""

import json
import pathlib
import re
import subprocess
import sys

from canonical import Checksum, bits, entries

LAKE_READER = pathlib.Path(__file__).resolve().parents[1] / "src/lake_reader.py"
SCHEMA = ("SELECT table_name, column_name, data_type FROM information_schema.columns "
          "WHERE table_name NOT LIKE '%!_!_files' ESCAPE '!' ORDER BY ALL")


def query(lake, sql):
    """Rows of a query, as lake_reader.py prints them."""
    arguments = [sys.executable, str(LAKE_READER), "query", lake, sql]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def expression(name, kind):
    """What makes a column a text, a number or an object of JSON without loss."""
    if kind == "TIMESTAMP WITH TIME ZONE":
        return f"epoch_us({name})"
    if kind == "DATE":
        return f"{name} - DATE '1970-01-01'"
    if kind == "BLOB":
        return f"lower(hex({name}))"
    if kind.startswith("STRUCT("):
        fields = re.findall(r'"?(\w+)"? (TIMESTAMP WITH TIME ZONE)(?:, |\)$)', kind)
        packed = ", ".join(f'"{field}" := {expression(f"{name}.{chr(34)}{field}{chr(34)}", of)}' for field, of in fields)
        return f"CASE WHEN {name} IS NOT NULL THEN struct_pack({packed}) END"
    return name


def text(kind, value):
    if value is None or kind == "VARCHAR" or kind == "BLOB":
        return value
    if kind == "BOOLEAN":
        return "true" if value else "false"
    if kind == "DOUBLE":
        return bits(float(value))
    if kind == "MAP(VARCHAR, DOUBLE)":
        return entries((key, bits(float(item))) for key, item in value.items() if item is not None)
    if kind.startswith("STRUCT("):
        return entries((name, str(item)) for name, item in value.items() if item is not None)
    if kind in ("BIGINT", "INTEGER", "DATE", "TIMESTAMP WITH TIME ZONE"):
        return str(value)
    raise SystemExit(f"no table of the lake has the type {kind}")


def main():
    for lake in sys.argv[1:]:
        kinds = {}
        for row in query(lake, SCHEMA):
            kinds.setdefault(row["table_name"], {})[row["column_name"]] = row["data_type"]
        parts = []
        for table, columns in kinds.items():
            selected = ", ".join(f'{expression(chr(34) + name + chr(34), kind)} AS "{name}"' for name, kind in columns.items())
            parts.append(f"SELECT '{table}' AS name, to_json(x) AS fields FROM (SELECT {selected} FROM \"{table}\") x")
        checksums = {table: Checksum() for table in kinds}
        for row in query(lake, " UNION ALL ".join(parts)):
            columns = kinds[row["name"]]
            checksums[row["name"]].add({name: text(columns[name], value) for name, value in row["fields"].items()})
        answers = {table: checksum.answer(kinds[table]) for table, checksum in checksums.items()}
        print(json.dumps({"lake": lake, "tables": answers}), flush=True)


main()

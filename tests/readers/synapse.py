"""The T-SQL scripts of deployment-manifests/cloud/synapse: split, parsed, and their views run on DuckDB.

No parser that can be had knows all of Synapse's T-SQL: sqlfluff has the grammar of everything but COPY INTO, sqlglot of that and of
queries, but not of OPENROWSET … WITH. So a rowset is cut out of its view first, and its columns are read as those of a table.
"""

import dataclasses
import functools
import pathlib
import re

import duckdb
import sqlfluff.core
import sqlglot
from sqlglot import expressions as e

COLLATION = "Latin1_General_100_BIN2_UTF8"
DUCKDB_TYPES = {"DATE": "DATE", "FLOAT": "DOUBLE", "BIGINT": "BIGINT", "INT": "INTEGER", "BIT": "BOOLEAN", "DATETIME2(6)": "TIMESTAMP",
                "VARBINARY(MAX)": "BLOB"}


class Fault(Exception):
    """What is wrong, in words that name the place."""


def ensure(holds, fault):
    if not holds:
        raise Fault(fault)


@dataclasses.dataclass
class Rowset:
    """OPENROWSET(BULK table …) WITH (columns)."""

    table: str
    options: dict
    columns: dict  # name -> (type, collation or None)


@dataclasses.dataclass
class View:
    name: str  # schema.view
    rowset: Rowset | None
    query: e.Expression


def batches(path):
    """What stands between lines that say GO."""
    parts = re.split(r"(?mi)^GO\s*$", path.read_text(encoding="utf-8"))
    return [part.strip() for part in parts if tokens(part)]


def tokens(text):
    return sqlglot.tokenize(text, read="tsql")


def check_grammar(path):
    """Every batch is T-SQL."""
    for batch in batches(path):
        fault = grammar_fault(batch)
        ensure(fault is None, f"{path.name}: {fault}: {batch[:80]}")


@functools.lru_cache(maxsize=1024)
def grammar_fault(batch):
    """What keeps a batch from being T-SQL, if anything does."""
    if tokens(batch)[0].text.upper() == "COPY":
        return None if isinstance(sqlglot.parse_one(batch, read="tsql"), e.Copy) else "no COPY INTO"
    linter = sqlfluff.core.Linter(config=sqlfluff.core.FluffConfig(overrides={"dialect": "tsql"}))
    faults = linter.parse_string(batch + "\nGO\n").violations
    return faults[0].desc() if faults else None


def closing(parts, opening):
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(parts)):
        depth += {"(": 1, ")": -1}.get(parts[index].text, 0)
        if depth == 0:
            return index
    raise Fault("a parenthesis is not closed")


def columns_of(text):
    """Columns of a list of definitions, with type and collation as they are written: a parser takes REAL for FLOAT."""
    sqlglot.parse_one(f"CREATE TABLE x ({text})", read="tsql")
    columns = {}
    for words in definitions(tokens(text)):
        name, rest = words[0], [word.upper() for word in words[1:]]
        ensure(name not in columns, f"column {name} is there twice")
        at = rest.index("COLLATE") if "COLLATE" in rest else len(rest)
        columns[name] = ("".join(rest[:at]), words[at + 2] if at < len(rest) else None)
    return columns


def definitions(parts):
    """Words between the commas that stand in no parenthesis."""
    words, depth = [], 0
    for part in parts:
        depth += {"(": 1, ")": -1}.get(part.text, 0)
        if part.text == "," and depth == 0:
            yield words
            words = []
        else:
            words.append(part.text)
    yield words


def cut_rowset(text):
    """A query without its OPENROWSET, which becomes the table raw.NAME, and that rowset, if it has one."""
    parts = tokens(text)
    at = [index for index, part in enumerate(parts) if part.text.upper() == "OPENROWSET"]
    if not at:
        return text, None
    ensure(len(at) == 1, "two rowsets in one view")
    end = closing(parts, at[0] + 1)
    words = parts[at[0] + 2:end]
    ensure(words[0].text.upper() == "BULK", "a rowset without BULK")
    table = words[1].text
    options = {words[index - 1].text.upper(): words[index + 1].text for index in range(2, len(words)) if words[index].text == "="}
    ensure(parts[end + 1].text.upper() == "WITH", f"{table}: a rowset without columns")
    last = closing(parts, end + 2)
    columns = columns_of(text[parts[end + 2].end + 1:parts[last].start])
    rest = f"{text[:parts[at[0]].start]}raw.[{table}]{text[parts[last].end + 1:]}"
    return rest, Rowset(table, options, columns)


def views(folder):
    """All views of the scripts, in order."""
    found = {}
    for path in sorted(folder.glob("*.sql")):
        for batch in batches(path):
            parts = tokens(batch)
            if [part.text.upper() for part in parts[:4]] != ["CREATE", "OR", "ALTER", "VIEW"]:
                continue
            name = f"{parts[4].text}.{parts[6].text}"
            ensure(parts[5].text == "." and parts[7].text.upper() == "AS", f"{path.name}: a view without schema or AS: {name}")
            ensure(name not in found, f"{name} is made twice")
            try:
                query, rowset = cut_rowset(batch[parts[7].end + 1:].strip().rstrip(";"))
                found[name] = View(name, rowset, sqlglot.parse_one(query, read="tsql"))
            except (Fault, sqlglot.ParseError) as fault:
                raise Fault(f"{path.name}: {name}: {fault}") from None
    return found


def duckdb_type(written):
    return "VARCHAR" if written.startswith("VARCHAR(") else DUCKDB_TYPES[written]


def connect(found, tables):
    """A DuckDB connection with these views. `tables` has the Arrow tables of the lake by name; one that it lacks is empty."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for schema in ("raw", "lake", "trends"):
        connection.execute(f"CREATE SCHEMA {schema}")
    for view in found.values():
        if view.rowset:
            connection.execute(raw_table(connection, view.rowset, tables))
    for view in found.values():
        try:
            connection.execute(f"CREATE VIEW {view.name} AS {view.query.sql('duckdb')}")
        except duckdb.Error as fault:
            raise Fault(f"{view.name}: {fault}") from None
    return connection


def raw_table(connection, rowset, tables):
    """What OPENROWSET gives: the columns that WITH names, in its types; nested ones as JSON."""
    table = tables.get(rowset.table)
    kinds = {name: duckdb_type(written) for name, (written, _) in rowset.columns.items()}
    if table is None:
        columns = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
        return f'CREATE TABLE raw."{rowset.table}" ({columns})'
    connection.register(f"arrow_{rowset.table}", table)

    def value(name, kind):
        nested = str(table.field(name).type).startswith(("map", "struct"))
        return f'CAST(to_json("{name}") AS VARCHAR)' if nested else f'CAST("{name}" AS {kind})'

    selected = ", ".join(f'{value(name, kind)} AS "{name}"' for name, kind in kinds.items())
    return f'CREATE VIEW raw."{rowset.table}" AS SELECT {selected} FROM "arrow_{rowset.table}"'


def described(connection, view):
    """Columns of a view and their DuckDB types."""
    try:
        return {row[0]: row[1] for row in connection.execute(f"DESCRIBE {view}").fetchall()}
    except duckdb.CatalogException as fault:
        raise Fault(str(fault)) from None


def folder_of(argument):
    folder = pathlib.Path(argument)
    ensure(folder.is_dir(), f"{folder} is no folder")
    return folder
